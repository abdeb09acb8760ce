// Package wire is what both ends of the dialect share: its words, and an SSH byte stream carried by WebSocket messages.
package wire

import (
	"io"
	"net"
	"runtime/debug"
	"strings"
	"time"

	"github.com/gorilla/websocket"
)

// The words of the dialect.
const (
	Protocol      = "kubesphere-v1"
	ClientVersion = "SSH-kubesphere-v1-client"
	ServerVersion = "SSH-kubesphere-v1-server"
	Build         = "0.0.0-rc"
	Channel       = "kubesphere"
	BufferSize    = 1024 // a gorilla client flushes a fragment each time this is full
)

// Registration is the JSON of the `config` request: Go's field names, byte fields in standard base64.
type Registration struct {
	Version           string
	Name              string
	Token             string
	KubernetesSvcHost string
	KubeSphereSvcHost string
	CertData          []byte `json:",omitempty"`
	KeyData           []byte `json:",omitempty"`
	CAData            []byte `json:",omitempty"`
	BearerToken       []byte `json:",omitempty"`
}

// Old tells which of the two deployed vintages this binary was built from: by the date of its x/crypto.
func Old() bool {
	info, _ := debug.ReadBuildInfo()
	for _, module := range info.Deps {
		if module.Path == "golang.org/x/crypto" {
			return strings.HasPrefix(module.Version, "v0.0.0-2020")
		}
	}
	return false
}

// Stream makes a byte stream of binary messages; where one message ends means nothing.
type Stream struct {
	*websocket.Conn
	rest []byte
}

func (s *Stream) Read(into []byte) (int, error) {
	if len(s.rest) == 0 {
		_, message, err := s.ReadMessage()
		if err != nil {
			return 0, err
		}
		s.rest = message
	}
	n := copy(into, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

func (s *Stream) Write(data []byte) (int, error) {
	if err := s.WriteMessage(websocket.BinaryMessage, data); err != nil {
		return 0, err
	}
	return len(data), nil
}

// SetDeadline completes net.Conn.
func (s *Stream) SetDeadline(at time.Time) error {
	if err := s.SetReadDeadline(at); err != nil {
		return err
	}
	return s.SetWriteDeadline(at)
}

var _ net.Conn = (*Stream)(nil)

// Pipe relays both ways. The first way to end closes both: the dialect's Go ends know no half-close.
func Pipe(first, second io.ReadWriteCloser) {
	ended := make(chan struct{}, 2)
	relay := func(to io.Writer, from io.Reader) {
		io.Copy(to, from)
		ended <- struct{}{}
	}
	go relay(first, second)
	go relay(second, first)
	<-ended
	first.Close()
	second.Close()
	<-ended
}
