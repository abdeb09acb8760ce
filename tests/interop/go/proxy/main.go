// Command proxy is the host's end of `kubesphere-v1` as the Go proxies in the field behave, oddities included: any path
// upgrades, the subprotocol is compared whole and never echoed, anybody passes SSH's own authentication, the first
// request has to be `config`, and of later ones only `ping` is ever answered. It also opens the channels that agents ask
// for. What lies in a Cluster resource out there is a file here: `-clusters` in, `-state` for what is written back.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"
	"strings"

	"github.com/gorilla/websocket"
	"golang.org/x/crypto/ssh"
	"tower.test/interop/wire"
)

type cluster struct {
	Name           string `json:"name"`
	Token          string `json:"token"`
	KubernetesPort int    `json:"kubernetesPort"`
	KubeSpherePort int    `json:"kubespherePort"` // out there always 10000 above
}

type proxy struct {
	bind, state string
	clusters    map[string]cluster
	authority   *authority
	ssh         *ssh.ServerConfig
	listeners   listeners
}

func main() {
	bind := flag.String("bind", "", "address of all listeners (out there: all addresses)")
	port := flag.Int("port", 8080, "where agents connect")
	clusters := flag.String("clusters", "", "JSON list of clusters")
	state := flag.String("state", "", "folder for NAME.kubeconfig and NAME.available")
	certificate := flag.String("ca-cert", "", "authority")
	key := flag.String("ca-key", "", "its key")
	rekeyBytes := flag.Uint64("rekey-bytes", 0, "between key exchanges; out there x/crypto's own 64 GiB (tests)")
	flag.Int("v", 0, "ignored")
	flag.Parse()

	p := &proxy{bind: *bind, state: *state, clusters: map[string]cluster{}}
	p.listeners.live = map[string]*pair{}
	var err error
	if p.authority, err = readAuthority(*certificate, *key); err != nil {
		log.Fatal(err)
	}
	data, err := os.ReadFile(*clusters)
	if err != nil {
		log.Fatal(err)
	}
	var list []cluster
	if err := json.Unmarshal(data, &list); err != nil {
		log.Fatal(err)
	}
	for _, each := range list {
		p.clusters[each.Name] = each
	}
	if p.ssh, err = newServerConfig(*rekeyBytes); err != nil {
		log.Fatal(err)
	}
	address := fmt.Sprintf("%s:%d", *bind, *port)
	log.Printf("listening on %s", address)
	log.Fatal(http.ListenAndServe(address, http.HandlerFunc(p.handle)))
}

// newServerConfig has a host key of its own for each process; whoever comes is let in.
func newServerConfig(rekeyBytes uint64) (*ssh.ServerConfig, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		return nil, err
	}
	config := &ssh.ServerConfig{
		Config:           ssh.Config{RekeyThreshold: rekeyBytes},
		ServerVersion:    wire.ServerVersion,
		PasswordCallback: func(ssh.ConnMetadata, []byte) (*ssh.Permissions, error) { return nil, nil },
	}
	config.AddHostKey(signer)
	return config, nil
}

func (p *proxy) handle(w http.ResponseWriter, r *http.Request) {
	if strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		if r.Header.Get("Sec-WebSocket-Protocol") == wire.Protocol {
			p.upgrade(w, r)
			return
		}
		log.Printf("not this dialect: %q", r.Header.Get("Sec-WebSocket-Protocol"))
	}
	switch r.URL.String() {
	case "/health":
		fmt.Fprintln(w, "OK")
	case "/version":
		fmt.Fprint(w, wire.Build)
	default:
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, "Not Found")
	}
}

func (p *proxy) upgrade(w http.ResponseWriter, r *http.Request) {
	upgrader := websocket.Upgrader{
		CheckOrigin:     func(*http.Request) bool { return true },
		ReadBufferSize:  wire.BufferSize,
		WriteBufferSize: wire.BufferSize,
	}
	carrier, err := upgrader.Upgrade(w, r, nil) // nil: nothing is echoed
	if err != nil {
		log.Printf("upgrade: %v", err)
		return
	}
	session, channels, requests, err := ssh.NewServerConn(&wire.Stream{Conn: carrier}, p.ssh)
	if err != nil {
		log.Printf("handshake: %v", err)
		return // and the connection stays as it is
	}
	p.serve(session, channels, requests)
}
