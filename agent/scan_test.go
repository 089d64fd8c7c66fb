package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// broken makes descriptors that say nothing.
func broken(t *testing.T, paths ...string) {
	t.Helper()
	for _, path := range paths {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// scanned scans a datastore and gives the descriptors that were found. Limit changes the
// limits.
func scanned(ctx context.Context, datastore string, limit func(*scan)) (found []string, err error) {
	s := newScan([]string{datastore}, func(path string, _ *Target, _ error) error {
		found = append(found, path)
		return nil
	})
	limit(s)
	err = s.datastore(ctx, datastore)
	return found, err
}

func unlimited(*scan) {}

// TestScanReadsLargeFolders: it finds all that is in them, though it reads them in parts.
func TestScanReadsLargeFolders(t *testing.T) {
	datastore := t.TempDir()
	const n = 2*readAtOnce + 1
	for i := range n {
		broken(t, filepath.Join(datastore, fmt.Sprintf("%d.vmx", i)), filepath.Join(datastore, fmt.Sprint(i), "vm.VMX"))
	}
	if found, err := scanned(t.Context(), datastore, unlimited); err != nil || len(found) != 2*n {
		t.Errorf("%d of %d VMs, %v", len(found), 2*n, err)
	}
}

// TestScanLimits: a scan ends at each of its limits, and says that it did.
func TestScanLimits(t *testing.T) {
	datastore := t.TempDir()
	for i := range 20 {
		broken(t, filepath.Join(datastore, fmt.Sprintf("%d.vmx", i)))
	}
	for name, limit := range map[string]func(*scan){
		"files":       func(s *scan) { s.files = 10 },
		"descriptors": func(s *scan) { s.descriptors = 10 },
		"text":        func(s *scan) { s.text = 10 },
	} {
		found, err := scanned(t.Context(), datastore, limit)
		if !errors.Is(err, ErrLimit) || len(found) == 0 || len(found) > 10 {
			t.Errorf("%s: %d VMs, %v", name, len(found), err)
		}
	}
}

// TestScanDepth: what lies too deep is left out, and nothing else.
func TestScanDepth(t *testing.T) {
	datastore := t.TempDir()
	deep := func(depth int) string {
		return filepath.Join(datastore, strings.Repeat("x/", depth), "vm.vmx")
	}
	broken(t, deep(maxDepth), deep(maxDepth+1), deep(maxDepth+2), filepath.Join(datastore, "y/vm.vmx"))
	found, err := scanned(t.Context(), datastore, unlimited)
	if !errors.Is(err, ErrLimit) || len(found) != 2 || !slices.Contains(found, deep(maxDepth)) {
		t.Errorf("found are %v, %v", found, err)
	}
}

// TestScanFollowsNoLinks: neither those that it finds, nor those that take a folder's place.
func TestScanFollowsNoLinks(t *testing.T) {
	datastore, outside := t.TempDir(), t.TempDir()
	broken(t, filepath.Join(outside, "vm.vmx"), filepath.Join(outside, "folder/vm.vmx"))
	for name, to := range map[string]string{"folder": outside, "loop": ".", "vm.vmx": filepath.Join(outside, "vm.vmx")} {
		if err := os.Symlink(to, filepath.Join(datastore, name)); err != nil {
			t.Fatal(err)
		}
	}
	if found, err := scanned(t.Context(), datastore, unlimited); err != nil || len(found) != 0 {
		t.Errorf("found are %v, %v", found, err)
	}
	parent, err := os.Open(datastore)
	if err != nil {
		t.Fatal(err)
	}
	defer parent.Close()
	if folder, err := openFolder(parent, "folder"); err == nil {
		folder.Close()
		t.Error("a link is opened as a folder")
	}
}

// TestScanTellsOfLinks behind which there may be VMs, unless these are found all the same.
func TestScanTellsOfLinks(t *testing.T) {
	datastore, outside := t.TempDir(), t.TempDir()
	other := filepath.Join(outside, "other")
	root := filepath.Join(t.TempDir(), "root") // the datastore may be a link itself
	broken(t, filepath.Join(datastore, "vm/vm.vmx"), filepath.Join(datastore, "vm/vm.bak"),
		filepath.Join(outside, "vm.vmx"), filepath.Join(outside, "disk.img"), filepath.Join(other, "vm.vmx"))
	links := map[string]struct {
		to   string
		told bool
	}{
		"folder":                 {outside, true},
		"above":                  {"..", true},
		"relative":               {"vm", false},
		"itself":                 {".", false},
		"another datastore":      {other, false},
		"descriptor.vmx":         {filepath.Join(outside, "vm.vmx"), true},
		"inside.vmx":             {"vm/vm.vmx", false},
		"other.vmx":              {filepath.Join(other, "vm.vmx"), false},
		"by another name.vmx":    {"vm/vm.bak", true},
		"descriptor as a backup": {filepath.Join(outside, "vm.vmx"), true},
		"disk.img":               {filepath.Join(outside, "disk.img"), false},
		"gone":                   {filepath.Join(outside, "gone"), true},
		"circle":                 {"circle", true},
	}
	want := map[string]bool{}
	for name, link := range links {
		if err := os.Symlink(link.to, filepath.Join(datastore, name)); err != nil {
			t.Fatal(err)
		}
		want[name] = link.told
	}
	if err := os.Symlink(datastore, root); err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for name := range links {
		got[name] = false
	}
	s := newScan([]string{root, other}, func(string, *Target, error) error { return nil })
	s.links = func(problem string) {
		path, _, _ := strings.Cut(problem, ": ")
		got[filepath.Base(path)] = true
	}
	if err := s.datastore(t.Context(), root); err != nil || !maps.Equal(got, want) {
		t.Errorf("told are %v, want %v, %v", got, want, err)
	}
}

// TestScanIsCancelled: it ends with its context.
func TestScanIsCancelled(t *testing.T) {
	datastore := t.TempDir()
	broken(t, filepath.Join(datastore, "vm.vmx"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if found, err := scanned(ctx, datastore, unlimited); !errors.Is(err, context.Canceled) || len(found) != 0 {
		t.Errorf("found are %v, %v", found, err)
	}
}

// TestScanTellsOfWhatItCannotRead: a folder that is gone is nothing to tell of; another that
// can't be read may have VMs in it.
func TestScanTellsOfWhatItCannotRead(t *testing.T) {
	datastore := t.TempDir()
	if err := os.Symlink(".", filepath.Join(datastore, "replaced")); err != nil {
		t.Fatal(err)
	}
	for name, told := range map[string]bool{"replaced": true, "gone": false} {
		_, err := scanned(t.Context(), datastore, func(s *scan) {
			parent, err := os.Open(datastore)
			if err != nil {
				t.Fatal(err)
			}
			defer parent.Close()
			if err := s.enter(t.Context(), parent, name, 1); err != nil {
				t.Error(err)
			}
		})
		if (err != nil) != told {
			t.Errorf("%s: %v", name, err)
		}
	}
}
