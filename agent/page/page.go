// Package page is the agent's status page: what an operator watches, to be read in a
// browser. It shows and changes nothing. A page on a TCP port asks for a Token; who may
// open one on a unix socket is said by the socket's mode.
package page

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"html/template"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/vmcrypt/vmcrypt/agent/api"
)

// Overview gives what the page shows.
type Overview func(context.Context) (*api.Overview, error)

//go:embed assets
var assets embed.FS

var templates = template.Must(template.New("").Funcs(functions).ParseFS(assets, "assets/*.html"))

// page is a status page.
type page struct {
	cache *cache
	door  *door // nil where all who can connect may look
	host  string
}

// Handler answers the requests of browsers and scripts. Without a token it answers all of
// them.
func Handler(overview Overview, token *Token) http.Handler {
	return newPage(overview, token).handler()
}

func newPage(overview Overview, token *Token) *page {
	host, _ := os.Hostname() // a page without a name is a page
	p := &page{cache: newCache(overview), host: host}
	if token != nil {
		p.door = newDoor(token)
	}
	return p
}

func (p *page) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", p.inside(p.whole))
	mux.HandleFunc("GET /fragment", p.inside(p.fragment))
	mux.HandleFunc("GET /overview.json", p.inside(p.json))
	mux.Handle("GET /style.css", asset("style.css", "text/css; charset=utf-8"))
	mux.Handle("GET /page.js", asset("page.js", "text/javascript; charset=utf-8"))
	mux.Handle("GET /icon.svg", asset("icon.svg", "image/svg+xml"))
	if p.door != nil {
		mux.HandleFunc("GET /login", p.loginForm)
		mux.HandleFunc("POST /login", p.login)
		mux.HandleFunc("POST /logout", p.logout)
	}
	return guard(mux)
}

func asset(name, contentType string) http.Handler {
	text, err := assets.ReadFile("assets/" + name)
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err != nil {
			http.Error(w, "not in this program", http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", contentType)
		_, _ = w.Write(text) // a client that went away
	})
}

// inside is for those who have shown the token.
func (p *page) inside(do http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		switch {
		case p.door == nil || p.door.lets(r):
			do(w, r)
		case r.URL.Path == "/" && r.Header.Get("Authorization") == "":
			http.Redirect(w, r, "/login", http.StatusSeeOther)
		default:
			p.door.refuse(w, r)
		}
	}
}

// whole answers with the page.
func (p *page) whole(w http.ResponseWriter, r *http.Request) {
	v, status := p.view(r)
	html(w, status, render("page", v))
}

// fragment answers with what changes in the page, or with 304 if nothing has.
func (p *page) fragment(w http.ResponseWriter, r *http.Request) {
	v, status := p.view(r)
	text := render("main", v)
	sum := sha256.Sum256(text)
	tag := `"` + hex.EncodeToString(sum[:16]) + `"`
	w.Header().Set("ETag", tag)
	if status == http.StatusOK && r.Header.Get("If-None-Match") == tag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	html(w, status, text)
}

// json answers with the overview as it is at GET /v1/overview of the agent's API.
func (p *page) json(w http.ResponseWriter, r *http.Request) {
	s := p.cache.get(r.Context())
	if s.err != nil {
		http.Error(w, s.err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(s.overview) // a client that went away
}

// view is what the request is to see. Without an overview, the status says so.
func (p *page) view(r *http.Request) (*view, int) {
	s := p.cache.get(r.Context())
	v := newView(s, r.URL.Query(), time.Now())
	v.Host, v.Login = p.host, p.door != nil
	if s.overview == nil {
		return v, http.StatusServiceUnavailable
	}
	return v, http.StatusOK
}

func render(name string, data any) []byte {
	var text bytes.Buffer
	if err := templates.ExecuteTemplate(&text, name, data); err != nil {
		slog.Error("the status page can't be made", "error", err)
		return []byte("The page can't be made: the agent's log says why.")
	}
	return text.Bytes()
}

func html(w http.ResponseWriter, status int, text []byte) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(text) // a client that went away
}

// link is the page's address with so much of the list of VMs.
func link(all bool, number int) string {
	q := url.Values{}
	if all {
		q.Set("all", "1")
	}
	if number > 1 {
		q.Set("page", strconv.Itoa(number))
	}
	return "/?" + q.Encode() + "#vms"
}
