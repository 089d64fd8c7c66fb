package page

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmcrypt/vmcrypt/agent/api"
)

// answer is what came back of a request.
type answer struct {
	*http.Response
	text string
}

// ask sends a request with headers, given as name and value by turns. It follows no
// redirect.
func ask(t *testing.T, h http.Handler, method, target, body string, headers ...string) answer {
	t.Helper()
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	r.Host = "127.0.0.1:9180"
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			r.Host = headers[i+1]
			continue
		}
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return answer{w.Result(), w.Body.String()}
}

const form = "application/x-www-form-urlencoded"

// TestAsksForToken: without the token there is nothing to see.
func TestAsksForToken(t *testing.T) {
	s := newSite(t)
	h := s.Config.Handler
	for _, test := range []struct {
		method, path, authorization string
		status                      int
	}{
		{"GET", "/", "", http.StatusSeeOther},
		{"HEAD", "/", "", http.StatusSeeOther},
		{"GET", "/fragment", "", http.StatusUnauthorized},
		{"GET", "/overview.json", "", http.StatusUnauthorized},
		{"GET", "/", "Bearer " + strings.Repeat("0", 64), http.StatusUnauthorized},
		{"GET", "/", "Bearer ", http.StatusUnauthorized},
		{"GET", "/", "Basic " + s.token, http.StatusUnauthorized},
		{"GET", "/?token=" + s.token, "", http.StatusSeeOther},
		{"GET", "/", "Bearer " + s.token, http.StatusOK},
		{"GET", "/", "bearer " + s.token, http.StatusOK},
		{"HEAD", "/", "Bearer " + s.token, http.StatusOK},
		{"GET", "/fragment", "Bearer " + s.token, http.StatusOK},
		{"GET", "/overview.json", "Bearer " + s.token, http.StatusOK},
		{"GET", "/login", "", http.StatusOK},
		{"GET", "/style.css", "", http.StatusOK},
		{"GET", "/nothing", "Bearer " + s.token, http.StatusNotFound},
		{"GET", "/../page.go", "Bearer " + s.token, http.StatusTemporaryRedirect},
		{"POST", "/", "Bearer " + s.token, http.StatusMethodNotAllowed},
		{"PUT", "/fragment", "Bearer " + s.token, http.StatusMethodNotAllowed},
		{"DELETE", "/login", "Bearer " + s.token, http.StatusMethodNotAllowed},
		{"GET", "/logout", "Bearer " + s.token, http.StatusMethodNotAllowed},
	} {
		var headers []string
		if test.authorization != "" {
			headers = []string{"Authorization", test.authorization}
		}
		a := ask(t, h, test.method, test.path, "", headers...)
		if a.StatusCode != test.status {
			t.Errorf("%s %s with %.12q…: %d", test.method, test.path, test.authorization, a.StatusCode)
		}
		if told := strings.Contains(a.text, "web01"); told != (test.status == http.StatusOK && test.authorization != "") {
			t.Errorf("%s %s with %.12q…: it tells of VMs: %v", test.method, test.path, test.authorization, told)
		}
		if strings.Contains(a.text, s.token) {
			t.Errorf("%s %s: the token is in the answer", test.method, test.path)
		}
	}
}

// TestSession: the token opens a session that logging out ends, in all browsers that have
// its cookie.
func TestSession(t *testing.T) {
	s := newSite(t)
	h := s.Config.Handler
	a := ask(t, h, "POST", "/login", "token="+s.token+"%0a", "Content-Type", form, "Origin", "http://127.0.0.1:9180", "Sec-Fetch-Site", "same-origin")
	if a.StatusCode != http.StatusSeeOther || a.Header.Get("Location") != "/" || len(a.Cookies()) != 1 {
		t.Fatalf("%d %v", a.StatusCode, a.Header)
	}
	c := a.Cookies()[0]
	if !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Path != "/" || c.Domain != "" || c.MaxAge != 0 || len(c.Value) != 2*sessionBytes || c.Value == s.token {
		t.Errorf("the cookie is %v", c)
	}
	cookie := c.Name + "=" + c.Value
	if a := ask(t, h, "GET", "/", "", "Cookie", cookie); a.StatusCode != http.StatusOK || !strings.Contains(a.text, "web01") {
		t.Errorf("with the session: %d", a.StatusCode)
	}
	for _, other := range []string{c.Name + "=" + s.token, c.Name + "=", "vmcrypt=" + c.Value, c.Name + "=" + strings.ToUpper(c.Value) + "0"} {
		if a := ask(t, h, "GET", "/fragment", "", "Cookie", other); a.StatusCode != http.StatusUnauthorized {
			t.Errorf("with the cookie %s: %d", other, a.StatusCode)
		}
	}
	if a := ask(t, h, "POST", "/logout", "", "Cookie", cookie); a.StatusCode != http.StatusSeeOther || a.Cookies()[0].MaxAge != -1 {
		t.Errorf("logging out: %d %v", a.StatusCode, a.Cookies())
	}
	if a := ask(t, h, "GET", "/fragment", "", "Cookie", cookie); a.StatusCode != http.StatusUnauthorized {
		t.Errorf("after logging out: %d", a.StatusCode)
	}
}

// TestSessionsEnd: by themselves, and where there are too many.
func TestSessionsEnd(t *testing.T) {
	d := newDoor(&Token{})
	var requests []*http.Request
	for range maxSessions + 1 {
		w := httptest.NewRecorder()
		d.enter(w)
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.AddCookie(w.Result().Cookies()[0])
		requests = append(requests, r)
	}
	if len(d.sessions) != maxSessions || d.lets(requests[0]) || !d.lets(requests[1]) {
		t.Errorf("of %d sessions there are %d; the first %v, the second %v", len(requests), len(d.sessions), d.lets(requests[0]), d.lets(requests[1]))
	}
	for id := range d.sessions {
		d.sessions[id] = time.Now()
	}
	if d.lets(requests[1]) {
		t.Error("a session that has ended opens the page")
	}
}

// TestWrongTokens: they are told so, and soon no more; who has the token comes in.
func TestWrongTokens(t *testing.T) {
	s := newSite(t)
	h := s.Config.Handler
	statuses := map[int]int{}
	for i := range 3 * maxFailures {
		var a answer
		if i%2 == 0 {
			a = ask(t, h, "POST", "/login", "token=wrong", "Content-Type", form)
		} else {
			a = ask(t, h, "GET", "/fragment", "", "Authorization", "Bearer wrong")
		}
		statuses[a.StatusCode]++
		if a.StatusCode == http.StatusTooManyRequests && a.Header.Get("Retry-After") == "" {
			t.Error("it does not say when to try again")
		}
	}
	if statuses[http.StatusForbidden]+statuses[http.StatusUnauthorized] != maxFailures || statuses[http.StatusTooManyRequests] != 2*maxFailures {
		t.Errorf("%v", statuses)
	}
	if a := ask(t, h, "POST", "/login", "token="+s.token, "Content-Type", form); len(a.Cookies()) != 1 {
		t.Errorf("the right token after wrong ones: %d", a.StatusCode)
	}
	if a := ask(t, h, "POST", "/login", "token="+strings.Repeat("0", maxBody)+s.token, "Content-Type", form); len(a.Cookies()) != 0 {
		t.Error("a body without limit is read")
	}
}

// TestOtherSites can neither read the page nor log anybody in.
func TestOtherSites(t *testing.T) {
	s := newSite(t)
	h := s.Config.Handler
	bearer := []string{"Authorization", "Bearer " + s.token}
	for _, test := range []struct {
		method, path string
		headers      []string
		status       int
	}{
		{"GET", "/", []string{"Host", "attacker.example"}, http.StatusMisdirectedRequest},
		{"GET", "/", []string{"Host", "attacker.example:9180"}, http.StatusMisdirectedRequest},
		{"GET", "/", []string{"Host", "127.0.0.1.attacker.example"}, http.StatusMisdirectedRequest},
		{"GET", "/", []string{"Host", "localhost.attacker.example"}, http.StatusMisdirectedRequest},
		{"GET", "/", []string{"Host", "192.0.2.1:9180"}, http.StatusMisdirectedRequest},
		{"GET", "/", []string{"Host", ""}, http.StatusMisdirectedRequest},
		{"GET", "/login", []string{"Host", "attacker.example"}, http.StatusMisdirectedRequest},
		{"GET", "/", []string{"Host", "localhost"}, http.StatusOK},
		{"GET", "/", []string{"Host", "localhost:8080"}, http.StatusOK},
		{"GET", "/", []string{"Host", "[::1]:8080"}, http.StatusOK},
		{"GET", "/", []string{"Host", "[::1]"}, http.StatusOK},
		{"GET", "/fragment", []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "no-cors"}, http.StatusForbidden},
		{"GET", "/style.css", []string{"Sec-Fetch-Site", "same-site", "Sec-Fetch-Mode", "no-cors"}, http.StatusForbidden},
		{"GET", "/", []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate"}, http.StatusOK},
		{"POST", "/login", []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate"}, http.StatusForbidden},
		{"POST", "/login", []string{"Sec-Fetch-Site", "same-site", "Sec-Fetch-Mode", "navigate"}, http.StatusForbidden},
		{"POST", "/login", []string{"Origin", "https://attacker.example"}, http.StatusForbidden},
		{"POST", "/login", []string{"Origin", "http://127.0.0.1:9181"}, http.StatusForbidden},
		{"POST", "/logout", []string{"Origin", "null"}, http.StatusForbidden},
		{"POST", "/logout", []string{"Origin", "http://127.0.0.1:9180"}, http.StatusSeeOther},
	} {
		a := ask(t, h, test.method, test.path, "", append(test.headers, bearer...)...)
		if a.StatusCode != test.status {
			t.Errorf("%s %s %v: %d, not %d", test.method, test.path, test.headers, a.StatusCode, test.status)
		}
		checkHeaders(t, test.method+" "+test.path, a)
	}
}

// checkHeaders: every answer has them.
func checkHeaders(t *testing.T, what string, a answer) {
	t.Helper()
	for name, value := range map[string]string{
		"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin", "Cache-Control": "no-store",
		"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin", "X-Frame-Options": "DENY",
	} {
		if a.Header.Get(name) != value {
			t.Errorf("%s: %s is %q", what, name, a.Header.Get(name))
		}
	}
	policy := a.Header.Get("Content-Security-Policy")
	for _, part := range []string{"default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'self'", "script-src 'self'"} {
		if !strings.Contains(policy, part) {
			t.Errorf("%s: the policy has no %s", what, part)
		}
	}
	if strings.Contains(policy, "unsafe") || strings.Contains(policy, "*") {
		t.Errorf("%s: the policy is %s", what, policy)
	}
}

// open is a page for which no token is needed.
func open(o *api.Overview) http.Handler { return Handler((&fixed{overview: o}).get, nil) }

// TestWithoutToken: on a unix socket there is nothing to log in to.
func TestWithoutToken(t *testing.T) {
	h := open(sample())
	if a := ask(t, h, "GET", "/", "", "Host", "localhost"); a.StatusCode != http.StatusOK || strings.Contains(a.text, "Log out") {
		t.Errorf("%d", a.StatusCode)
	}
	for _, path := range []string{"/login", "/logout"} {
		if a := ask(t, h, "GET", path, ""); a.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %d", path, a.StatusCode)
		}
	}
	if a := ask(t, h, "GET", "/", "", "Host", "attacker.example"); a.StatusCode != http.StatusMisdirectedRequest {
		t.Errorf("of another site: %d", a.StatusCode)
	}
}

// TestHostileNames stay text, and lines stay lines.
func TestHostileNames(t *testing.T) {
	text := ask(t, open(hostile()), "GET", "/?all=1", "").text
	for _, bad := range []string{"<script>alert", "<img", "<style>", "\u202e", "\x00", "\xff", "line\nbreak", "href=\"javascript:"} {
		if strings.Contains(text, bad) {
			t.Errorf("the page has %q", bad)
		}
	}
	for _, good := range []string{"&lt;script&gt;alert(1)&lt;/script&gt;", `\u202egnp.exe\u202c`, `line\u000abreak`, "مرحبا",
		"vmcrypt encrypt &#39;/ds/$(reboot)/it&#39;\\&#39;&#39;s; rm -rf ~.vmx&#39;"} {
		if !strings.Contains(text, good) {
			t.Errorf("the page has no %q", good)
		}
	}
	if n := strings.Count(text, "<main"); n != 1 {
		t.Errorf("%d times main", n)
	}
}

// shown is how many VMs the page at an address has, and how long it is.
func shown(t *testing.T, h http.Handler, target string) (vms int, text string) {
	t.Helper()
	text = ask(t, h, "GET", target, "").text
	return len(regexp.MustCompile(`<li id="vm-`).FindAllString(text, -1)), text
}

// TestManyVMs: a page has a bounded length, what is wrong comes first, and all can be found.
func TestManyVMs(t *testing.T) {
	o := well(10_000)
	o.VMs[9000].Problem, o.VMs[9000].State = "its descriptor can't be read", api.Locked
	for range 1000 {
		o.Warnings = append(o.Warnings, api.Warning{Severity: api.Notice, Subject: "x", Text: strings.Repeat("y", 100_000)})
		o.VMs[9000].Disks = append(o.VMs[9000].Disks, api.Disk{Node: strings.Repeat("z", 100)})
	}
	h := open(o)
	n, text := shown(t, h, "/")
	if n != vmsOnPage || len(text) > 1<<20 || !strings.Contains(text, "Show 3333 VMs more, locked and well") {
		t.Errorf("%d VMs, %d bytes", n, len(text))
	}
	if first := strings.Index(text, "app9000"); first < 0 || first > strings.Index(text, "app0001") {
		t.Error("what is wrong does not come first")
	}
	seen, h := 0, open(well(1000))
	for target := "/?all=1"; target != ""; {
		n, text := shown(t, h, target)
		seen += n
		next := regexp.MustCompile(`href="([^"#]*)#vms">Next<`).FindStringSubmatch(text)
		if target = ""; next != nil {
			target = strings.ReplaceAll(next[1], "&amp;", "&")
		}
	}
	if seen != 1000 {
		t.Errorf("all pages together have %d VMs", seen)
	}
	for target, want := range map[string]int{"/?page=-1": vmsOnPage, "/?page=x": vmsOnPage, "/?page=99999999999999999999": 66, "/?all=1&page=1000000": vmsOnPage} {
		if n, _ := shown(t, h, target); n != want {
			t.Errorf("%s has %d VMs", target, n)
		}
	}
	if n, text := shown(t, open(well(fewVMs)), "/"); n != fewVMs || strings.Contains(text, "<nav") {
		t.Errorf("of %d VMs %d are shown", fewVMs, n)
	}
}

// TestFragment is the part of the page that changes, and says whether it has.
func TestFragment(t *testing.T) {
	f := &fixed{overview: sample()}
	p := newPage(f.get, nil)
	p.cache.fresh = 0
	h := p.handler()
	a := ask(t, h, "GET", "/fragment", "")
	whole := ask(t, h, "GET", "/", "").text
	if !strings.HasPrefix(a.text, "<main") || !strings.Contains(whole, strings.TrimSpace(a.text)) {
		t.Error("it is no part of the page")
	}
	if b := ask(t, h, "GET", "/fragment", "", "If-None-Match", a.Header.Get("ETag")); b.StatusCode != http.StatusNotModified || b.text != "" {
		t.Errorf("unchanged: %d", b.StatusCode)
	}
	f.set(nothing())
	if b := ask(t, h, "GET", "/fragment", "", "If-None-Match", a.Header.Get("ETag")); b.StatusCode != http.StatusOK {
		t.Errorf("changed: %d", b.StatusCode)
	}
}

// TestEmpty tells what to do.
func TestEmpty(t *testing.T) {
	text := ask(t, open(nothing()), "GET", "/", "").text
	for _, words := range []string{"No VM in the datastores has encrypted disks.", "vmcrypt encrypt VM.vmx", "No key manager is configured.", "Nothing needs attention."} {
		if !strings.Contains(text, words) {
			t.Errorf("it does not say %s", words)
		}
	}
}

// TestTestKeys: that a key manager answers is not all; what it gives is told in words.
func TestTestKeys(t *testing.T) {
	for _, test := range []struct {
		state, canary, problem string
		tells                  []string
		well                   bool
	}{
		{"ok", "", "", []string{"–"}, true},
		{"ok", "ok", "", []string{"given"}, true},
		{"ok", "unreachable", "key 7: silent", []string{"no answer", "key 7: silent"}, true},
		{"ok", "missing", "key 7: gone <b>", []string{"#i-warning", "missing", "key 7: gone &lt;b&gt;"}, false},
		{"ok", "denied", "key 7: no", []string{"#i-warning", "denied", "key 7: no"}, false},
		{"unreachable", "ok", "", []string{"–"}, false},
	} {
		o := nothing()
		o.KeyManagers = []api.KeyManager{{Alias: "a", Address: "a:1", State: test.state, Canary: test.canary, CanaryProblem: test.problem}}
		text := ask(t, open(o), "GET", "/", "").text
		_, table, _ := strings.Cut(text, "<tbody")
		for _, word := range test.tells {
			if !strings.Contains(table, word) {
				t.Errorf("%+v: it does not say %q: %s", test, word, table)
			}
		}
		if well := strings.Contains(text, "1 of 1 key manager"); well != test.well {
			t.Errorf("%+v: it is well: %v", test, well)
		}
	}
}

// TestJSON is what the agent's API tells.
func TestJSON(t *testing.T) {
	var o api.Overview
	if err := json.Unmarshal([]byte(ask(t, open(sample()), "GET", "/overview.json", "").text), &o); err != nil || len(o.VMs) != 3 {
		t.Errorf("%v, %d VMs", err, len(o.VMs))
	}
}

// TestOneLoadForAll: those who look at the same time, and soon after, share an overview.
func TestOneLoadForAll(t *testing.T) {
	f, release := &fixed{overview: sample()}, make(chan struct{})
	h := Handler(func(ctx context.Context) (*api.Overview, error) {
		<-release
		return f.get(ctx)
	}, nil)
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if a := ask(t, h, "GET", "/", ""); !strings.Contains(a.text, "web01") {
				t.Errorf("%d", a.StatusCode)
			}
		})
	}
	close(release)
	all.Wait()
	ask(t, h, "GET", "/overview.json", "")
	if f.loads != 1 {
		t.Errorf("%d overviews were made", f.loads)
	}
}

// TestClientLeaves: an overview that one asked for and did not wait for is there for others.
func TestClientLeaves(t *testing.T) {
	f, release := &fixed{overview: sample()}, make(chan struct{})
	c := newCache(func(ctx context.Context) (*api.Overview, error) {
		<-release
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return f.get(ctx)
	})
	ctx, leave := context.WithCancel(t.Context())
	leave()
	if s := c.get(ctx); !errors.Is(s.err, errLoading) {
		t.Errorf("who leaves gets %v", s.err)
	}
	close(release)
	if s := c.get(t.Context()); s.overview == nil || f.loads != 1 {
		t.Errorf("who stays gets %v after %d loads", s.err, f.loads)
	}
}

// TestFailedOverview: the last one is shown, and called so; without one there is an error.
func TestFailedOverview(t *testing.T) {
	f := &fixed{err: errors.New("the <disk> is gone")}
	p := newPage(f.get, nil)
	p.cache.fresh = 0
	h := p.handler()
	for _, path := range []string{"/", "/fragment", "/overview.json"} {
		if a := ask(t, h, "GET", path, ""); a.StatusCode != http.StatusServiceUnavailable || !strings.Contains(a.text, "is gone") {
			t.Errorf("%s: %d", path, a.StatusCode)
		}
	}
	f.overview, f.err = sample(), nil
	ask(t, h, "GET", "/", "")
	f.err = errors.New("the <disk> is gone")
	if a := ask(t, h, "GET", "/", ""); a.StatusCode != http.StatusOK || !strings.Contains(a.text, "the &lt;disk&gt; is gone") || !strings.Contains(a.text, "web01") {
		t.Errorf("with an old overview: %d", a.StatusCode)
	}
}

// TestThroughServer: a browser's way in, over a connection.
func TestThroughServer(t *testing.T) {
	s := newSite(t)
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Jar: jar, Timeout: hang}
	resp, err := client.PostForm(s.URL+"/login", url.Values{"token": {s.token}})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.Request.URL.Path != "/" || !strings.Contains(string(text), "web01") {
		t.Errorf("%v, at %s", err, resp.Request.URL)
	}
}
