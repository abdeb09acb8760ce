package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log"
	"math/rand"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"tower.test/interop/wire"
)

const flushEvery = 200 * time.Millisecond

// pair is the two listeners of one cluster, alive while it has an agent.
type pair struct {
	kubernetes, kubesphere *end
	agents                 int
	stop                   context.CancelFunc
}

type listeners struct {
	sync.Mutex
	live map[string]*pair
}

// end is an HTTP server for one destination in the member: a request goes to one of the agents' transports by chance.
type end struct {
	scheme, remote string
	token          []byte // of the agent that came first; later ones change nothing while the listener lives
	server         *http.Server
	mutex          sync.Mutex
	transports     []*http.Transport
}

// join adds an agent's transports, starting the listeners where it is the first; `leave` takes them out again.
func (p *proxy) join(c cluster, session ssh.Conn, r *wire.Registration) (leave func() bool, err error) {
	for scheme, host := range map[string]string{"https": r.KubernetesSvcHost, "http": r.KubeSphereSvcHost} {
		if _, err := url.Parse(scheme + "://" + host); err != nil {
			return nil, err
		}
	}
	serving, err := p.authority.issueServing()
	if err != nil {
		log.Print(err)
		select {} // no reply, ever
	}
	kubernetes, useToken, err := newTransport(session, r.KubernetesSvcHost, r)
	if err != nil {
		return nil, err
	}
	kubesphere, _, _ := newTransport(session, r.KubeSphereSvcHost, nil)

	p.listeners.Lock()
	defer p.listeners.Unlock()
	found := p.listeners.live[c.Name]
	if found == nil {
		found = &pair{
			kubernetes: &end{scheme: "https", remote: r.KubernetesSvcHost, server: &http.Server{
				Addr: fmt.Sprintf("%s:%d", p.bind, c.KubernetesPort),
				TLSConfig: &tls.Config{
					Certificates: []tls.Certificate{*serving},
					ClientCAs:    p.authority.pool(),
					ClientAuth:   tls.RequestClientCert, // and whatever comes is taken
				},
			}},
			kubesphere: &end{scheme: "http", remote: r.KubeSphereSvcHost, server: &http.Server{
				Addr: fmt.Sprintf("%s:%d", p.bind, c.KubeSpherePort),
			}},
		}
		if useToken {
			found.kubernetes.token = r.BearerToken
		}
		var ctx context.Context
		ctx, found.stop = context.WithCancel(context.Background())
		found.kubernetes.start(ctx)
		found.kubesphere.start(ctx)
		p.listeners.live[c.Name] = found
	}
	found.agents++
	found.kubernetes.add(kubernetes)
	found.kubesphere.add(kubesphere)
	return func() bool {
		p.listeners.Lock()
		defer p.listeners.Unlock()
		found.kubernetes.remove(kubernetes)
		found.kubesphere.remove(kubesphere)
		if found.agents--; found.agents > 0 {
			return false
		}
		found.stop()
		delete(p.listeners.live, c.Name)
		return true
	}, nil
}

func newTransport(session ssh.Conn, remote string, r *wire.Registration) (*http.Transport, bool, error) {
	config := &tls.Config{}
	useToken := true
	if r != nil && len(r.CAData) > 0 {
		config.RootCAs = x509.NewCertPool()
		config.RootCAs.AppendCertsFromPEM(r.CAData)
	}
	if r != nil && len(r.CertData) > 0 && len(r.KeyData) > 0 {
		own, err := tls.X509KeyPair(r.CertData, r.KeyData)
		if err != nil {
			return nil, false, err
		}
		config.Certificates, useToken = []tls.Certificate{own}, false
	}
	dial := func(context.Context, string, string) (net.Conn, error) { return dialThrough(session, remote) }
	return &http.Transport{DialContext: dial, TLSClientConfig: config}, useToken, nil
}

// start never tells whether it could listen: that is only logged, when it is known.
func (e *end) start(ctx context.Context) {
	e.server.Handler = e
	go func() {
		<-ctx.Done()
		e.server.Shutdown(ctx)
	}()
	go func() {
		var err error
		if e.server.TLSConfig != nil {
			err = e.server.ListenAndServeTLS("", "")
		} else {
			err = e.server.ListenAndServe()
		}
		log.Printf("%s: %v", e.server.Addr, err)
	}()
}

func (e *end) add(transport *http.Transport) {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	e.transports = append(e.transports, transport)
}

func (e *end) remove(transport *http.Transport) {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	for i, each := range e.transports {
		if each == transport {
			e.transports = append(e.transports[:i:i], e.transports[i+1:]...)
		}
	}
}

func (e *end) pick() http.RoundTripper {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	if len(e.transports) == 0 {
		return noAgent{}
	}
	return e.transports[rand.Intn(len(e.transports))]
}

type noAgent struct{}

func (noAgent) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, fmt.Errorf("no agent")
}

// ServeHTTP authenticates nobody; with an agent's token it makes everybody that agent.
func (e *end) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	relay := &httputil.ReverseProxy{
		Director: func(out *http.Request) {
			out.URL.Scheme, out.URL.Host = e.scheme, e.remote // the Host header stays the caller's
			if len(e.token) > 0 {
				out.Header.Set("Authorization", "Bearer "+string(e.token))
			}
		},
		Transport:     e.pick(),
		FlushInterval: flushEvery,
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			log.Printf("%s: %v", r.URL, err)
			if wire.Old() {
				w.WriteHeader(http.StatusBadGateway)
			} // the newer vintage writes nothing, which is an empty 200
		},
	}
	relay.ServeHTTP(w, r)
}
