// Command spiffe is the other side of a bundle endpoint, by go-spiffe: it serves a bundle under either profile, and
// fetches one.
//
//	spiffe serve DOMAIN BUNDLE.json CERT.pem KEY.pem    prints the address, serves until its input ends
//	spiffe fetch DOMAIN URL web ROOTS.pem               prints the bundle, https_web
//	spiffe fetch DOMAIN URL spiffe BUNDLE.json ID       prints the bundle, https_spiffe
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "spiffe:", err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	if len(arguments) < 5 {
		return errors.New("see the comment at the top of main.go")
	}
	domain, err := spiffeid.TrustDomainFromString(arguments[1])
	if err != nil {
		return err
	}
	switch arguments[0] {
	case "serve":
		return serve(domain, arguments[2], arguments[3], arguments[4])
	case "fetch":
		return fetch(domain, arguments[2], arguments[3:])
	}
	return errors.New("neither serve nor fetch")
}

func serve(domain spiffeid.TrustDomain, file, certificate, key string) error {
	bundle, err := spiffebundle.Load(domain, file)
	if err != nil {
		return err
	}
	handler, err := federation.NewHandler(domain, bundle)
	if err != nil {
		return err
	}
	pair, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 5 * time.Second,
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{pair}},
	}
	fmt.Println(listener.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		_ = server.Close()
	}()
	if err := server.ServeTLS(listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func fetch(domain spiffeid.TrustDomain, url string, how []string) error {
	var option federation.FetchOption
	switch {
	case how[0] == "web":
		pem, err := os.ReadFile(how[1])
		if err != nil {
			return err
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(pem)
		option = federation.WithWebPKIRoots(roots)
	case how[0] == "spiffe" && len(how) == 3:
		known, err := spiffebundle.Load(domain, how[1])
		if err != nil {
			return err
		}
		id, err := spiffeid.FromString(how[2])
		if err != nil {
			return err
		}
		option = federation.WithSPIFFEAuth(known, id)
	default:
		return errors.New("neither web nor spiffe")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	bundle, err := federation.FetchBundle(ctx, domain, url, option)
	if err != nil {
		return err
	}
	text, err := bundle.Marshal()
	if err != nil {
		return err
	}
	fmt.Println(string(text))
	return nil
}
