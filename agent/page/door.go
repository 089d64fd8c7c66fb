package page

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Limits of sessions and of attempts.
const (
	sessionTime  = 12 * time.Hour
	maxSessions  = 64 // the one that ends first makes way
	maxFailures  = 10 // in failureTime; they are also the most that are logged
	failureTime  = time.Minute
	sessionBytes = 32
)

// digest stands for a session's id: who could read this process' memory could not come
// in by it.
type digest = [sha256.Size]byte

// door knows who has shown the token.
type door struct {
	token  *Token
	cookie string // its name

	mu       sync.Mutex
	sessions map[digest]time.Time // when they end
	failures int                  // since
	since    time.Time
}

func newDoor(token *Token) *door {
	// Browsers send a cookie to all ports of a host. With names of their own, the pages of
	// several hosts can be open through tunnels side by side.
	name := sha256.Sum256(append([]byte("vmcrypt cookie name\x00"), token.digest[:]...))
	return &door{token: token, cookie: "vmcrypt-" + hex.EncodeToString(name[:4]), sessions: map[digest]time.Time{}}
}

// lets tells whether the request has the token or a session.
func (d *door) lets(r *http.Request) bool {
	if token, ok := bearer(r); ok {
		return d.token.is(token)
	}
	c, err := r.Cookie(d.cookie)
	if err != nil {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	ends, ok := d.sessions[sha256.Sum256([]byte(c.Value))]
	return ok && time.Now().Before(ends)
}

func bearer(r *http.Request) (string, bool) {
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	return strings.TrimSpace(token), ok && strings.EqualFold(scheme, "Bearer")
}

// refuse answers a request that is not let in.
func (d *door) refuse(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "" && !d.failed() {
		tooMany(w)
		return
	}
	w.Header().Set("WWW-Authenticate", `Bearer realm="vmcrypt"`)
	http.Error(w, "the token is needed: Authorization: Bearer TOKEN", http.StatusUnauthorized)
}

func tooMany(w http.ResponseWriter) {
	w.Header().Set("Retry-After", "60")
	http.Error(w, "too many wrong tokens: try again in a minute", http.StatusTooManyRequests)
}

// failed counts a wrong token, and tells whether there were few of late. Who has the right
// one comes in all the same: any user of the host could keep them out otherwise, and nobody
// guesses 256 bits.
func (d *door) failed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if now := time.Now(); now.Sub(d.since) > failureTime {
		d.failures, d.since = 0, now
	}
	if d.failures++; d.failures > maxFailures {
		return false
	}
	slog.Warn("status page: somebody came with a wrong token")
	return true
}

// enter makes a session.
func (d *door) enter(w http.ResponseWriter) {
	random := make([]byte, sessionBytes)
	_, _ = rand.Read(random) // it never fails
	id := hex.EncodeToString(random)
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.sessions) >= maxSessions {
		delete(d.sessions, d.oldest())
	}
	d.sessions[sha256.Sum256([]byte(id))] = time.Now().Add(sessionTime)
	d.setCookie(w, id, 0)
}

func (d *door) oldest() (oldest digest) {
	var first time.Time
	for id, ends := range d.sessions {
		if first.IsZero() || ends.Before(first) {
			oldest, first = id, ends
		}
	}
	return oldest
}

// leave ends the session of a request.
func (d *door) leave(w http.ResponseWriter, r *http.Request) {
	if c, err := r.Cookie(d.cookie); err == nil {
		d.mu.Lock()
		delete(d.sessions, sha256.Sum256([]byte(c.Value)))
		d.mu.Unlock()
	}
	d.setCookie(w, "", -1)
}

// setCookie has the browser keep the session's id until it ends. It can't be told to keep
// it off connections without TLS (Secure): that is what loopback has.
func (d *door) setCookie(w http.ResponseWriter, id string, maxAge int) {
	http.SetCookie(w, &http.Cookie{ //nolint:gosec // as is said above
		Name: d.cookie, Value: id, Path: "/", MaxAge: maxAge, HttpOnly: true, SameSite: http.SameSiteStrictMode,
	})
}

// loginView is what the form shows.
type loginView struct {
	Host, File string
	Wrong      bool
}

func (p *page) loginForm(w http.ResponseWriter, r *http.Request) {
	if p.door.lets(r) {
		http.Redirect(w, r, "/", http.StatusSeeOther)
		return
	}
	html(w, http.StatusOK, render("login", loginView{p.host, p.door.token.File, false}))
}

func (p *page) login(w http.ResponseWriter, r *http.Request) {
	switch {
	case p.door.token.is(strings.TrimSpace(r.PostFormValue("token"))):
		p.door.enter(w)
		http.Redirect(w, r, "/", http.StatusSeeOther)
	case p.door.failed():
		html(w, http.StatusForbidden, render("login", loginView{p.host, p.door.token.File, true}))
	default:
		tooMany(w)
	}
}

func (p *page) logout(w http.ResponseWriter, r *http.Request) {
	p.door.leave(w, r)
	http.Redirect(w, r, "/login", http.StatusSeeOther)
}
