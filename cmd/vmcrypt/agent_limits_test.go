package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/vmcrypt/vmcrypt/agent/api"
	"github.com/vmcrypt/vmcrypt/internal/testtool"
)

// TestListLongNames: what a descriptor says of itself at length, and many times over, is
// told in brief.
func TestListLongNames(t *testing.T) {
	h := startHost(t)
	target := h.vm("web01", "scsi0:0")
	long := h.copyVM(target, "web02")
	h.edit(long, `displayName = ".*"`, `displayName = "x`+strings.Repeat("ä", 20<<10)+`"`)
	h.edit(long, `uuid.bios = ".*"`, `uuid.bios = "`+strings.Repeat("u", 40<<10)+`"`)
	const links = 300
	for i := range links {
		if err := os.Link(long, h.at("web02", fmt.Sprintf("link%d.vmx", i))); err != nil {
			t.Fatal(err)
		}
	}
	list := h.list()
	if len(list) != links+2 {
		t.Errorf("listed are %d VMs", len(list))
	}
	for _, vm := range list {
		isBrief(t, vm)
	}
	h.unlock("web01")
	isBrief(t, h.unlock(long))
	isBrief(t, h.list()[0])
	h.lock("web01")
	h.lock(long)
	h.untouched()
}

func isBrief(t *testing.T, vm api.VM) {
	t.Helper()
	if len(vm.Name) > 256 || len(vm.UUID) > 256 || strings.ContainsRune(vm.Name, utf8.RuneError) || vm.Name == "" {
		t.Errorf("%s: a name of %d bytes and a UUID of %d: %.300q", vm.Descriptor, len(vm.Name), len(vm.UUID), vm.Name)
	}
}

// TestListDeepFolders: whoever nests folders does not keep the agent from VMs beside
// them, and the log tells that there is more.
func TestListDeepFolders(t *testing.T) {
	t.Parallel()
	h := startHost(t)
	target := h.vm("web01", "scsi0:0")
	nest(t, h.at("abyss"), 2000)
	if list := h.list(); len(list) != 1 || list[0].Descriptor != target {
		t.Errorf("listed are %+v", list)
	}
	if !strings.Contains(h.log(), "folders 16 deep") {
		t.Errorf("the log says\n%s", h.log())
	}
}

// nest makes folders within each other: as a path they would be too long.
func nest(t *testing.T, path string, depth int) {
	t.Helper()
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	folder, err := os.OpenRoot(path)
	for range depth {
		if err != nil {
			t.Fatal(err)
		}
		if err := folder.Mkdir("x", 0o700); err != nil {
			t.Fatal(err)
		}
		above := folder
		folder, err = above.OpenRoot("x")
		above.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	folder.Close()
}

// TestAgentLogIsBrief: clients can't fill the log, and those without rights write
// nothing into it.
func TestAgentLogIsBrief(t *testing.T) {
	t.Parallel()
	h := startHost(t, groupsConfig)
	written := func(do func()) string {
		t.Helper()
		before := len(h.log())
		do()
		return h.log()[before:]
	}
	long := strings.Repeat("x", 50<<10)
	for _, path := range []string{"/" + long, "/v1/vm?vm=" + long} {
		line := written(func() { h.request(http.MethodGet, path, "") })
		if !strings.Contains(line, "request failed") || len(line) > 2<<10 {
			t.Errorf("GET %.20s: the log has %d bytes more: %.300q", path, len(line), line)
		}
	}
	if os.Getuid() != 0 {
		t.Skip("only root can be other users")
	}
	if line := written(func() { h.as(nil, "list") }); line != "" {
		t.Errorf("a stranger writes %q", line)
	}
	if line := written(func() { h.as([]string{viewGroup}, "unlock", "web01") }); !strings.Contains(line, "permission denied") {
		t.Errorf("of a viewer who unlocks the log has %q", line)
	}
}

// TestPatientClient: how long one answer may take to be read does not count for those
// that follow on the connection.
func TestPatientClient(t *testing.T) {
	t.Parallel()     // it waits
	testtool.Long(t) // longer than a client may take to read an answer
	h := startHost(t)
	connections := 0
	client := http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		connections++
		return net.Dial("unix", h.socket())
	}}}
	get := func(path string) string {
		t.Helper()
		resp, err := client.Get("http://agent" + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	get("/v1/agent")
	time.Sleep(11 * time.Second)
	if text := get("/v1/openapi.yaml"); text != string(api.OpenAPI) {
		t.Errorf("it answers %.100q", text)
	}
	if connections != 1 {
		t.Errorf("there were %d connections", connections)
	}
}
