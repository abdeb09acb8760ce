// The vintage of 2020: what v0.2.1 was built with.
module tower.test/interop

go 1.21

require (
	github.com/gorilla/websocket v1.4.0
	golang.org/x/crypto v0.0.0-20200220183623-bac4c82f6975
	gopkg.in/yaml.v2 v2.4.0
)

require golang.org/x/sys v0.0.0-20190412213103-97732733099d // indirect
