// The vintage of 2023: what v0.2.2 was built with.
module tower.test/interop

go 1.21

require (
	github.com/gorilla/websocket v1.5.0
	golang.org/x/crypto v0.7.0
	gopkg.in/yaml.v2 v2.4.0
)

require golang.org/x/sys v0.6.0 // indirect
