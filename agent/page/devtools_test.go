package page

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vmcrypt/vmcrypt/internal/testtool"
)

// hang bounds what must not take for ever.
const hang = time.Minute

// browser is a headless Chromium with one tab, led over a pipe by the Chrome DevTools
// Protocol: https://chromedevtools.github.io/devtools-protocol/.
type browser struct {
	t       *testing.T
	to      *os.File
	session string

	mu       sync.Mutex
	last     int
	answers  map[int]chan message
	loaded   chan struct{}
	problems []string // what the browser complained about
}

type message struct {
	ID     int             `json:"id"`
	Method string          `json:"method"`
	Params json.RawMessage `json:"params"`
	Result json.RawMessage `json:"result"`
	Error  *struct{ Message string }
}

func startBrowser(t *testing.T) *browser {
	t.Helper()
	program := testtool.Need(t, "chromium")
	fromUs, to := pipe(t)
	from, toUs := pipe(t)
	cmd := exec.Command(program, "--headless=new", "--no-sandbox", "--remote-debugging-pipe", "--user-data-dir="+t.TempDir(),
		"--no-first-run", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--hide-scrollbars", "about:blank")
	cmd.ExtraFiles = []*os.File{fromUs, toUs} // 3 and 4, as the protocol has it
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	fromUs.Close()
	toUs.Close()
	b := &browser{t: t, to: to, answers: map[int]chan message{}, loaded: make(chan struct{}, 100)}
	done := make(chan struct{})
	go b.read(from, done)
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		<-done
	})
	b.openTab()
	return b
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

func (b *browser) openTab() {
	b.t.Helper()
	var target struct{ TargetID, SessionID string }
	b.do("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	b.do("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &target)
	b.session = target.SessionID
	for _, domain := range []string{"Page", "Runtime", "Log"} {
		b.do(domain+".enable", nil, nil)
	}
}

// read takes what the browser says. Messages end with a zero byte.
func (b *browser) read(from *os.File, done chan<- struct{}) {
	defer close(done)
	r := bufio.NewReader(from)
	for {
		text, err := r.ReadBytes(0)
		if err != nil {
			return
		}
		var m message
		if json.Unmarshal(text[:len(text)-1], &m) == nil {
			b.take(m)
		}
	}
}

func (b *browser) take(m message) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch m.Method {
	case "":
		b.answers[m.ID] <- m
	case "Page.loadEventFired":
		b.loaded <- struct{}{}
	case "Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded":
		b.problems = append(b.problems, string(m.Params))
	}
}

// do has the browser do something, and waits for the result.
func (b *browser) do(method string, params, result any) {
	b.t.Helper()
	b.mu.Lock()
	b.last++
	id, answer := b.last, make(chan message, 1)
	b.answers[id] = answer
	b.mu.Unlock()
	command := map[string]any{"id": id, "method": method}
	if params != nil {
		command["params"] = params
	}
	if b.session != "" {
		command["sessionId"] = b.session
	}
	text, err := json.Marshal(command)
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.to.Write(append(text, 0)); err != nil {
		b.t.Fatal(err)
	}
	select {
	case m := <-answer:
		if m.Error != nil {
			b.t.Fatalf("%s: %s", method, m.Error.Message)
		}
		if result != nil {
			if err := json.Unmarshal(m.Result, result); err != nil {
				b.t.Fatal(err)
			}
		}
	case <-time.After(hang):
		b.t.Fatalf("%s: no answer from the browser", method)
	}
}

// open goes to an address.
func (b *browser) open(url string) {
	b.t.Helper()
	b.loading(func() { b.do("Page.navigate", map[string]any{"url": url}, nil) })
}

// loading waits until a page is there that do leads to.
func (b *browser) loading(do func()) {
	b.t.Helper()
	for len(b.loaded) > 0 {
		<-b.loaded
	}
	do()
	select {
	case <-b.loaded:
	case <-time.After(hang):
		b.t.Fatal("the page does not load")
	}
}

// eval gives the value of an expression, or of its promise.
func eval[T any](b *browser, expression string) (value T) {
	b.t.Helper()
	var answer struct {
		Result           struct{ Value json.RawMessage }
		ExceptionDetails json.RawMessage
	}
	b.do("Runtime.evaluate", map[string]any{"expression": expression, "awaitPromise": true, "returnByValue": true}, &answer)
	if answer.ExceptionDetails != nil {
		b.t.Fatalf("%s: %s", expression, answer.ExceptionDetails)
	}
	if answer.Result.Value != nil {
		if err := json.Unmarshal(answer.Result.Value, &value); err != nil {
			b.t.Fatalf("%s: %v", expression, err)
		}
	}
	return value
}

// until waits for an expression to be true.
func (b *browser) until(expression string) {
	b.t.Helper()
	for begun := time.Now(); !eval[bool](b, expression); time.Sleep(50 * time.Millisecond) {
		if time.Since(begun) > hang {
			b.t.Fatalf("it does not come to %s", expression)
		}
	}
}

// screen sets the size in pixels, and dark or light.
func (b *browser) screen(width, height int, scheme string) {
	b.t.Helper()
	b.do("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}, nil)
	b.do("Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}}}, nil)
}

// shoot keeps a picture of the page if VMCRYPT_SCREENSHOTS names a folder for it.
func (b *browser) shoot(name string) {
	b.t.Helper()
	folder := os.Getenv("VMCRYPT_SCREENSHOTS")
	if folder == "" {
		return
	}
	var picture struct{ Data string }
	b.do("Page.captureScreenshot", map[string]any{"captureBeyondViewport": true}, &picture)
	data, err := base64.StdEncoding.DecodeString(picture.Data)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, name+".png"), data, 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// complaints are what the browser complained about since it was asked last: errors,
// broken security policies, what a script wrote to the console.
func (b *browser) complaints() (all []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	all, b.problems = b.problems, nil
	return all
}

// quiet fails the test if there are complaints.
func (b *browser) quiet(what string) {
	b.t.Helper()
	for _, c := range b.complaints() {
		b.t.Errorf("%s: the browser complains: %s", what, c)
	}
}

// press has a key pressed.
func (b *browser) press(key string, code int) {
	b.t.Helper()
	for _, event := range []string{"rawKeyDown", "keyUp"} {
		b.do("Input.dispatchKeyEvent", map[string]any{"type": event, "key": key, "code": key, "windowsVirtualKeyCode": code}, nil)
	}
}

// overflow is by how many pixels the page is wider than the screen.
func (b *browser) overflow() int {
	b.t.Helper()
	return eval[int](b, `document.scrollingElement.scrollWidth - document.documentElement.clientWidth`)
}
