package main

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"log"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

const tenYears = 10 * 365 * 24 * time.Hour

// authority signs what callers see and what they show: RSA keys of 2048 bits, made anew for every agent that connects.
type authority struct {
	pem         []byte
	certificate *x509.Certificate
	key         crypto.Signer
}

func readAuthority(certificate, key string) (*authority, error) {
	data, err := os.ReadFile(certificate)
	if err != nil {
		return nil, err
	}
	pair, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		return nil, err
	}
	signer, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, errors.New("the authority's key cannot sign")
	}
	return &authority{data, parsed, signer}, nil
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.certificate)
	return pool
}

func (a *authority) issue(subject pkix.Name, use x509.ExtKeyUsage, names []string, addresses []net.IP) (certificate, key []byte, err error) {
	made, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      subject,
		NotBefore:    a.certificate.NotBefore,
		NotAfter:     time.Now().Add(tenYears),
		KeyUsage:     x509.KeyUsageKeyEncipherment | x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{use},
		DNSNames:     names,
		IPAddresses:  addresses,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, made.Public(), a.key)
	if err != nil {
		return nil, nil, err
	}
	block := func(kind string, data []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: data}) }
	return block("CERTIFICATE", der), block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(made)), nil
}

func (a *authority) issueServing() (*tls.Certificate, error) {
	names := []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"}
	subject := pkix.Name{CommonName: "Tower", Organization: []string{"KubeSphere"}}
	certificate, key, err := a.issue(subject, x509.ExtKeyUsageServerAuth, names, []net.IP{net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(certificate, key)
	return &pair, err
}

const kubeconfig = `apiVersion: v1
kind: Config
clusters: [{name: kubernetes, cluster: {server: "https://127.0.0.1:%d", certificate-authority-data: %s}}]
users: [{name: kubernetes-admin, user: {client-certificate-data: %s, client-key-data: %s}}]
contexts: [{name: kubernetes-admin@kubernetes, context: {cluster: kubernetes, user: kubernetes-admin}}]
current-context: kubernetes-admin@kubernetes
`

// writeKubeconfig issues the callers' credential, again whenever an agent connects.
func (p *proxy) writeKubeconfig(c cluster) {
	subject := pkix.Name{CommonName: "kubernetes-admin", Organization: []string{"system:masters"}}
	certificate, key, err := p.authority.issue(subject, x509.ExtKeyUsageClientAuth, nil, nil)
	if err != nil {
		log.Print(err)
		return
	}
	encode := base64.StdEncoding.EncodeToString
	text := fmt.Sprintf(kubeconfig, c.KubernetesPort, encode(p.authority.pem), encode(certificate), encode(key))
	path := filepath.Join(p.state, c.Name+".kubeconfig")
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		log.Print(err)
		return
	}
	if err := os.Rename(path+".new", path); err != nil {
		log.Print(err)
	}
}
