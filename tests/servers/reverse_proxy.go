// Go's reverse proxy, the peer of the matrix: reverse_proxy ADDRESS URL.
package main

import (
	"io"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
)

func main() {
	target, _ := url.Parse(os.Args[2])
	log.SetOutput(io.Discard)
	proxy := &httputil.ReverseProxy{FlushInterval: -1, Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.Out.Host = r.In.Host
		r.SetXForwarded()
	}}
	panic(http.ListenAndServe(os.Args[1], proxy))
}
