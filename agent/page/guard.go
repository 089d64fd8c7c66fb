package page

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// headers go with every answer. A page that could load, run or send something from or to
// anywhere else would be one that shows what a hostile descriptor wants; one that is kept
// in a cache would be there for the next user of the browser.
var headers = map[string]string{
	"Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; " +
		"form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
	"X-Content-Type-Options":       "nosniff",
	"X-Frame-Options":              "DENY",
	"Referrer-Policy":              "same-origin", // with no-referrer, forms would have the Origin "null"
	"Cache-Control":                "no-store",
	"Cross-Origin-Opener-Policy":   "same-origin",
	"Cross-Origin-Resource-Policy": "same-origin",
	"Permissions-Policy":           "camera=(), geolocation=(), microphone=()",
}

// maxBody is how many bytes a form may have.
const maxBody = 4 << 10

// guard lets requests through that a page of this site, or a program, made.
func guard(next http.Handler) http.Handler {
	next = http.NewCrossOriginProtection().Handler(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name, value := range headers {
			w.Header().Set(name, value)
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		switch {
		case !isLoopback(hostname(r.Host)):
			http.Error(w, "this page answers to localhost and loopback addresses only", http.StatusMisdirectedRequest)
		case foreign(r):
			http.Error(w, "another site asked for this", http.StatusForbidden)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// hostname is a Host header's name, without the port. That is whatever port a tunnel has.
func hostname(hostport string) string {
	if host, _, err := net.SplitHostPort(hostport); err == nil {
		return host
	}
	return strings.TrimSuffix(strings.TrimPrefix(hostport, "["), "]")
}

// isLoopback tells whether a name can be that of this host only. A site that has its own
// name resolved to a loopback address (DNS rebinding) comes with that name.
func isLoopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback() || strings.EqualFold(host, "localhost")
}

// foreign tells whether a page of another site, or of another port of this host, made the
// request, other than by a link: https://www.w3.org/TR/fetch-metadata/. Programs and old
// browsers don't say.
func foreign(r *http.Request) bool {
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "same-origin", "none":
		return false
	}
	return r.Header.Get("Sec-Fetch-Mode") != "navigate"
}
