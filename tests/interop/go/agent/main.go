// Command agent is the member's end of `kubesphere-v1` as the Go agents in the field behave, oddities included: it
// reads its credential once, verifies no host key, takes any text in the reply to `config` for a refusal (and leaves
// that connection open), ends with exit code 0 when a handshake or the `config` request breaks, and dials whatever the
// server names, after it has accepted the channel.
package main

import (
	"encoding/json"
	"flag"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/gorilla/websocket"
	"golang.org/x/crypto/ssh"
	"tower.test/interop/wire"
)

const (
	firstWait  = 100 * time.Millisecond
	waitFactor = 1.4
)

type options struct {
	name, token, server, kubernetes, kubesphere, kubeconfig, account string
	keepalive, longestWait                                           time.Duration
	rekeyBytes                                                       uint64
}

func main() {
	var o options
	flag.StringVar(&o.name, "name", "", "the cluster")
	flag.StringVar(&o.token, "token", "", "its token")
	flag.StringVar(&o.server, "proxy-server", "", "http(s):// address of the server")
	flag.StringVar(&o.kubernetes, "kubernetes-service", "kubernetes.default.svc:443", "overwritten, as everywhere")
	flag.StringVar(&o.kubesphere, "kubesphere-service", "ks-apiserver.kubesphere-system.svc", "host:port")
	flag.StringVar(&o.kubeconfig, "kubeconfig", "", "in place of the pod's ServiceAccount")
	flag.StringVar(&o.account, "account", "/var/run/secrets/kubernetes.io/serviceaccount", "where the pod's lies (tests)")
	flag.DurationVar(&o.keepalive, "keepalive", 30*time.Second, "between pings")
	flag.DurationVar(&o.longestWait, "max-retry-interval", 2*time.Minute, "at most between attempts")
	flag.Uint64Var(&o.rekeyBytes, "rekey-bytes", 0, "between key exchanges; out there x/crypto's own 64 GiB (tests)")
	flag.Int("v", 0, "ignored")
	flag.Parse()
	if o.longestWait < time.Second {
		o.longestWait = 5 * time.Minute
	}
	registration, err := o.registration()
	if err != nil {
		log.Fatal(err)
	}
	address, err := o.address()
	if err != nil {
		log.Fatal(err)
	}
	agent := &agent{address: address, registration: registration, rekeyBytes: o.rekeyBytes}
	if o.keepalive > 0 {
		go agent.pings(o.keepalive)
	}
	agent.connects(o.longestWait)
}

// address: ws for http, and a port where the host does not end in a digit.
func (o *options) address() (string, error) {
	parsed, err := url.Parse(o.server)
	if err != nil {
		return "", err
	}
	secure := parsed.Scheme == "https" || parsed.Scheme == "wss"
	parsed.Scheme = map[bool]string{false: "ws", true: "wss"}[secure]
	if last := parsed.Host[len(parsed.Host)-1:]; last < "0" || last > "9" {
		parsed.Host += map[bool]string{false: ":80", true: ":443"}[secure]
	}
	return parsed.String(), nil
}

func (o *options) registration() ([]byte, error) {
	r := wire.Registration{
		Version: wire.Build, Name: o.name, Token: o.token,
		KubernetesSvcHost: o.kubernetes, KubeSphereSvcHost: o.kubesphere,
	}
	if o.kubeconfig != "" {
		found, err := readKubeconfig(o.kubeconfig)
		if err != nil {
			return nil, err
		}
		r.CAData, r.CertData, r.KeyData = found.ca, found.certificate, found.key
		r.KubernetesSvcHost = strings.TrimPrefix(found.server, "https://")
		return json.Marshal(r)
	}
	host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		log.Fatal("not in a cluster: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set")
	}
	var err error
	if r.BearerToken, err = os.ReadFile(filepath.Join(o.account, "token")); err != nil {
		return nil, err
	}
	if r.CAData, err = os.ReadFile(filepath.Join(o.account, "ca.crt")); err != nil {
		return nil, err
	}
	r.KubernetesSvcHost = host + ":" + port
	return json.Marshal(r)
}

type agent struct {
	address      string
	registration []byte
	rekeyBytes   uint64
	session      ssh.Conn // read by the pings without a lock: as it is out there
}

// pings: one loop for the life of the process; what comes back, and when, is nobody's concern.
func (a *agent) pings(every time.Duration) {
	for {
		time.Sleep(every)
		if session := a.session; session != nil {
			session.SendRequest("ping", true, nil)
		}
	}
}

func (a *agent) connects(longest time.Duration) {
	wait := firstWait
	for {
		lasted, failure, over := a.once()
		if over {
			return
		}
		if lasted {
			wait = firstWait
		}
		if failure == nil {
			continue // a clean end: again, at once
		}
		log.Printf("%v; again in %v", failure, wait)
		hangup := make(chan os.Signal, 1)
		signal.Notify(hangup, syscall.SIGHUP)
		select {
		case <-time.After(wait):
		case <-hangup:
		}
		signal.Stop(hangup)
		wait = min(time.Duration(float64(wait)*waitFactor), longest)
	}
}

// once connects and serves. A failure asks for another attempt later, `over` for the end of the process.
func (a *agent) once() (lasted bool, failure error, over bool) {
	dialer := websocket.Dialer{
		Proxy:            http.ProxyFromEnvironment,
		ReadBufferSize:   wire.BufferSize,
		WriteBufferSize:  wire.BufferSize,
		HandshakeTimeout: 45 * time.Second,
		Subprotocols:     []string{wire.Protocol},
	}
	carrier, _, err := dialer.Dial(a.address, http.Header{})
	if err != nil {
		return false, err, false
	}
	session, channels, requests, err := ssh.NewClientConn(&wire.Stream{Conn: carrier}, "", &ssh.ClientConfig{
		Config:          ssh.Config{RekeyThreshold: a.rekeyBytes},
		User:            "",
		Auth:            []ssh.AuthMethod{ssh.Password("")},
		ClientVersion:   wire.ClientVersion,
		HostKeyCallback: func(string, net.Addr, ssh.PublicKey) error { return nil },
	})
	if err != nil {
		log.Printf("handshake: %v", err)
		return false, nil, true
	}
	_, refusal, err := session.SendRequest("config", true, a.registration)
	if err != nil {
		log.Printf("config: %v", err)
		return false, nil, true
	}
	if len(refusal) > 0 {
		return false, &refused{string(refusal)}, false // and the connection stays open
	}
	log.Printf("connected")
	a.session = session
	go ssh.DiscardRequests(requests)
	go serve(channels)
	err = session.Wait()
	a.session = nil
	if err == io.EOF {
		err = nil
	}
	log.Printf("disconnected: %v", err)
	return true, err, false
}

type refused struct{ text string }

func (r *refused) Error() string { return "refused: " + r.text }

func serve(channels <-chan ssh.NewChannel) {
	for offered := range channels {
		remote := string(offered.ExtraData()) // raw, without a length; the channel's type is not looked at
		channel, requests, err := offered.Accept()
		if err != nil {
			log.Printf("channel: %v", err)
			continue
		}
		go ssh.DiscardRequests(requests)
		go func() {
			conn, err := net.Dial("tcp", remote)
			if err != nil {
				log.Printf("dial %s: %v", remote, err)
				channel.Close()
				return
			}
			wire.Pipe(channel, conn)
		}()
	}
}
