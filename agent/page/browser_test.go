package page

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmcrypt/vmcrypt/internal/testtool"
)

// site is a page that is served, and what it shows.
type site struct {
	*httptest.Server
	*fixed
	token string
}

// newSite serves a page that shows changes at once.
func newSite(t *testing.T) *site {
	t.Helper()
	file := filepath.Join(t.TempDir(), "http-token")
	token, err := OpenToken(file, -1)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	token.File = "/var/lib/vmcrypt/agent/http-token"
	f := &fixed{overview: sample()}
	p := newPage(f.get, token)
	p.cache.fresh, p.host = 0, "kvm-01.example.com"
	s := &site{Server: httptest.NewServer(p.handler()), fixed: f, token: strings.TrimSpace(string(text))}
	t.Cleanup(s.Close)
	return s
}

// TestInBrowser: one browser for all, as it takes seconds to start.
func TestInBrowser(t *testing.T) {
	testtool.Long(t)
	s := newSite(t)
	b := startBrowser(t)
	axe := readAxe(t)
	logIn(b, s, axe)
	for name, o := range map[string]*fixed{"day": {overview: sample()}, "empty": {overview: nothing()}, "hostile": {overview: hostile()}, "many": {overview: well(60)}} {
		s.set(o.overview)
		fits(b, s, axe, name)
	}
	s.set(sample())
	warningsFirst(b, s)
	changes(b, s)
	keyboard(b, s)
	withoutScript(b, s)
	agentGoes(b, s)
}

// logIn shows the token.
func logIn(b *browser, s *site, axe string) {
	b.t.Helper()
	b.screen(1280, 800, "light")
	b.open(s.URL + "/")
	if path := eval[string](b, `location.pathname`); path != "/login" {
		b.t.Fatalf("without a session one sees %s", path)
	}
	for _, scheme := range []string{"light", "dark"} {
		for _, width := range []int{320, 1280} {
			b.screen(width, 700, scheme)
			accessible(b, axe, "login")
			b.shoot(fmt.Sprintf("login-%d-%s", width, scheme))
		}
	}
	b.quiet("login")
	typeToken(b, strings.Repeat("0", 64))
	if !eval[bool](b, `document.getElementById("wrong").textContent.includes("not the token")`) {
		b.t.Error("a wrong token is not called so")
	}
	b.shoot("login-wrong")
	accessible(b, axe, "wrong token")
	b.complaints() // of the status 403
	typeToken(b, s.token)
	if path := eval[string](b, `location.pathname`); path != "/" {
		b.t.Fatalf("the token leads to %s", path)
	}
	if cookies := eval[string](b, `document.cookie`); cookies != "" {
		b.t.Errorf("scripts see %s", cookies)
	}
	b.quiet("after login")
}

func typeToken(b *browser, token string) {
	b.t.Helper()
	eval[any](b, `document.getElementById("token").focus()`)
	b.do("Input.insertText", map[string]any{"text": token}, nil)
	b.loading(func() { eval[any](b, `document.querySelector("button").click()`) })
}

// fits looks at the page in all sizes, light and dark.
func fits(b *browser, s *site, axe, name string) {
	b.t.Helper()
	b.open(s.URL + "/?all=1")
	for _, scheme := range []string{"light", "dark"} {
		for _, width := range []int{320, 390, 768, 1280} {
			b.screen(width, 900, scheme)
			for _, open := range []bool{true, false} {
				eval[any](b, fmt.Sprintf(`document.querySelectorAll("details").forEach((d, i) => d.open = %v && i < 3)`, open))
				if over := b.overflow(); over > 0 {
					b.t.Errorf("%s, %d px wide, open %v: %d px too wide", name, width, open, over)
				}
			}
			// axe takes its time: the phone in the light and the desk in the dark, and all for one.
			if light := scheme == "light"; width == 320 && (light || name == "day") || width == 1280 && (!light || name == "day") {
				accessible(b, axe, fmt.Sprintf("%s, %s, %d px", name, scheme, width))
			}
			b.shoot(fmt.Sprintf("%s-%d-%s", name, width, scheme))
		}
	}
	b.quiet(name)
}

func readAxe(t *testing.T) string {
	t.Helper()
	f, err := os.Open("testdata/axe-core/axe.min.js.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// accessible has axe-core look for what breaks a rule of WCAG 2, or is bad practice.
func accessible(b *browser, axe, what string) {
	b.t.Helper()
	if !eval[bool](b, `"axe" in window`) {
		eval[any](b, axe+";0")
	}
	var result struct {
		Violations, Passes []struct {
			ID, Help string
			Nodes    []struct{ HTML, FailureSummary string }
		}
	}
	text := eval[string](b, `axe.run(document, {resultTypes: ["violations"]}).then((r) => JSON.stringify({violations: r.violations, passes: r.passes}))`)
	if err := json.Unmarshal([]byte(text), &result); err != nil {
		b.t.Fatal(err)
	}
	if len(result.Passes) < 10 {
		b.t.Errorf("%s: only %d rules were kept: axe did not look", what, len(result.Passes))
	}
	for _, v := range result.Violations {
		b.t.Errorf("%s: %s: %s: %d times, as in %s\n%s", what, v.ID, v.Help, len(v.Nodes), v.Nodes[0].HTML, v.Nodes[0].FailureSummary)
	}
}

// warningsFirst: what is worst comes first in the document, with words.
func warningsFirst(b *browser, s *site) {
	b.t.Helper()
	b.open(s.URL + "/")
	order := eval[[]string](b, `[...document.querySelectorAll("main > section")].map((s) => s.id)`)
	if got := strings.Join(order, " "); got != "warnings summary conversions keymanagers vms" {
		b.t.Errorf("the order is %s", got)
	}
	for selector, words := range map[string]string{
		".alert":              "Critical /var/lib/libvirt/images/mail01/mail01.vmx",
		".alert:nth-child(2)": "Warning KMSCluster kms-b.example.com:5696",
		".conversion .told":   "40 % of 20 GiB, encrypting, interrupted: run vmcrypt encrypt /var/lib/libvirt/images/db01/db01.vmx to go on",
		"#keymanagers tbody":  "unreachable",
		"#keymanagers tr [data-label='Test key']": "given",
		".vms li":              "restarting",
		".vms li:nth-child(2)": "db01",
		".vms li:nth-child(3)": "unlocked",
	} {
		text := eval[string](b, `document.querySelector(`+quoted(selector)+`).textContent.replace(/\s+/g, " ")`)
		if !strings.Contains(text, words) {
			b.t.Errorf("%s has %q, not %q", selector, text, words)
		}
	}
	if value := eval[float64](b, `document.querySelector("progress").position`); value != 0.4 {
		b.t.Errorf("the bar is at %v", value)
	}
}

func quoted(text string) string {
	q, _ := json.Marshal(text)
	return string(q)
}

// changes: what the agent tells is shown without another load of the page, and what is
// open or has the focus stays so.
func changes(b *browser, s *site) {
	b.t.Helper()
	b.screen(1280, 500, "light")
	b.open(s.URL + "/")
	eval[any](b, `window.mark = 1; const s = document.querySelector(".vms li:nth-child(3) summary"); s.click(); s.focus(); scrollTo(0, 200)`)
	o := sample()
	o.VMs[1].State, o.VMs[1].Problem, o.Warnings = o.VMs[2].State, "", o.Warnings[1:]
	position := int64(10 << 30)
	o.VMs[0].Disks[0].Conversion.PositionBytes = &position
	s.set(o)
	lookNow(b)
	b.until(`document.querySelector("progress").value == 50 && !document.querySelector(".alert.critical")`)
	for expression, what := range map[string]string{
		`window.mark === 1`: "the page was loaded again",
		`document.activeElement.tagName == "SUMMARY" && document.activeElement.textContent.includes("web01")`: "the focus is gone",
		`document.querySelectorAll("details[open]").length == 1`:                                              "the details are closed",
		`document.querySelector("details[open]").textContent.includes("web01")`:                               "other details are open",
		`scrollY == 200`: "the page has scrolled",
		`document.getElementById("live").textContent.startsWith("0 critical warnings, 2 warnings, 2 VMs unlocked")`: "it is not announced",
		`!document.title.startsWith("(")`: "the title still counts a critical warning",
	} {
		if !eval[bool](b, expression) {
			b.t.Error(what)
		}
	}
	b.quiet("changes")
}

// lookNow has the page ask the agent without a pause.
func lookNow(b *browser) {
	b.t.Helper()
	eval[any](b, `document.dispatchEvent(new Event("visibilitychange"))`)
}

// keyboard: the page can be used without a mouse, and shows where one is.
func keyboard(b *browser, s *site) {
	b.t.Helper()
	b.open(s.URL + "/")
	var seen []string
	for range 5 {
		b.press("Tab", 9)
		seen = append(seen, eval[string](b, `document.activeElement.className || document.activeElement.tagName`))
		if style := eval[string](b, `getComputedStyle(document.activeElement).outlineStyle`); style != "solid" {
			b.t.Errorf("the focus on %s can't be seen: %s", seen[len(seen)-1], style)
		}
	}
	if got := strings.Join(seen, " "); got != "skip quiet"+strings.Repeat(" SUMMARY", 3) {
		b.t.Errorf("Tab leads to %s", got)
	}
	b.shoot("focus")
	b.press("Enter", 13)
	b.do("Input.dispatchKeyEvent", map[string]any{"type": "char", "text": "\r"}, nil)
	b.until(`document.activeElement.parentElement.open`)
}

// withoutScript: the page says the same, and loads itself again.
func withoutScript(b *browser, s *site) {
	b.t.Helper()
	b.do("Emulation.setScriptExecutionDisabled", map[string]any{"value": true}, nil)
	b.open(s.URL + "/")
	if text := eval[string](b, `document.body.innerText`); !strings.Contains(text, "As of ") || !strings.Contains(text, "web01") {
		b.t.Errorf("without scripts one sees %s", text)
	}
	if refresh := eval[string](b, `document.querySelector("meta[http-equiv=refresh]").content`); refresh != "30" {
		b.t.Errorf("without scripts the page loads itself again after %s", refresh)
	}
	b.quiet("without scripts")
	b.do("Emulation.setScriptExecutionDisabled", map[string]any{"value": false}, nil)
}

// agentGoes: the page says that it is old.
func agentGoes(b *browser, s *site) {
	b.t.Helper()
	b.screen(1280, 800, "light")
	b.open(s.URL + "/")
	s.CloseClientConnections()
	s.Close()
	lookNow(b)
	b.until(`document.getElementById("gone").textContent.includes("no answer since ")`)
	b.shoot("gone")
}
