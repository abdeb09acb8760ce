package main

import (
	"encoding/json"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/crypto/ssh"
	"tower.test/interop/wire"
)

const registrationDeadline = 10 * time.Second

// serve is one agent's session from SSH's own authentication on.
func (p *proxy) serve(session *ssh.ServerConn, channels <-chan ssh.NewChannel, requests <-chan *ssh.Request) {
	var first *ssh.Request
	select {
	case first = <-requests:
	case <-time.After(registrationDeadline):
		session.Close()
		return
	}
	if first == nil {
		return // gone before it said who it is
	}
	if first.Type != "config" {
		first.Reply(false, []byte("expecting config request"))
		return // refused agents' connections are never closed
	}
	var r wire.Registration
	if err := json.Unmarshal(first.Payload, &r); err != nil {
		log.Printf("no JSON in config: %v", err)
		return // and no reply
	}
	known, found := p.clusters[r.Name]
	if !found || known.Token != r.Token {
		first.Reply(false, []byte("Unauthorized agent"))
		return
	}
	leave, err := p.join(known, session, &r)
	if err != nil {
		first.Reply(false, []byte(err.Error()))
		return
	}
	first.Reply(true, nil)
	log.Printf("%s: agent connected", r.Name)
	p.writeKubeconfig(known)
	p.setAvailable(known.Name, true)

	go answerPings(requests)
	go dialForAgent(channels)
	err = session.Wait()
	log.Printf("%s: agent disconnected: %v", r.Name, err)
	if last := leave(); last {
		p.setAvailable(known.Name, false)
	}
}

// answerPings leaves every other request without an answer, so that a peer that waits for one waits for good.
func answerPings(requests <-chan *ssh.Request) {
	for request := range requests {
		if request.Type == "ping" {
			request.Reply(true, nil)
		} else {
			log.Printf("unknown request %q", request.Type)
		}
	}
}

// dialForAgent is the hole that the Go proxies have: whatever an agent asks for is dialled from here.
func dialForAgent(channels <-chan ssh.NewChannel) {
	for offered := range channels {
		remote := string(offered.ExtraData())
		channel, requests, err := offered.Accept()
		if err != nil {
			continue
		}
		go ssh.DiscardRequests(requests)
		go func() {
			conn, err := net.Dial("tcp", remote)
			if err != nil {
				channel.Close()
				return
			}
			wire.Pipe(channel, conn)
		}()
	}
}

// stream is a channel as the net.Conn that http.Transport wants; its deadlines do nothing.
type stream struct{ ssh.Channel }

func (stream) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (stream) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (stream) SetDeadline(time.Time) error      { return nil }
func (stream) SetReadDeadline(time.Time) error  { return nil }
func (stream) SetWriteDeadline(time.Time) error { return nil }

func dialThrough(session ssh.Conn, remote string) (net.Conn, error) {
	channel, requests, err := session.OpenChannel(wire.Channel, []byte(remote))
	if err != nil {
		return nil, err
	}
	go ssh.DiscardRequests(requests)
	return stream{channel}, nil
}

func (p *proxy) setAvailable(name string, available bool) {
	path := filepath.Join(p.state, name+".available")
	if err := os.WriteFile(path, []byte(fmt.Sprint(available)), 0o600); err != nil {
		log.Print(err)
	}
}
