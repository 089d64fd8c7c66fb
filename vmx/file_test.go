package vmx

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLosslessOddities(t *testing.T) {
	for _, data := range []string{
		"", "\n", "\r\n", "\r", "\n\r", " ", "=", "=\"\"", "a", "a=", "a=\r", `a="`, `a="b`,
		"a = \"1\"\r\nb = \"2\"\nc = \"3\"\rd = \"4\"", "\xef\xbb\xbf", "\xef\xbb\xbfa = \"1\"",
		"\xef\xbb\xbf\xef\xbb\xbfa=1", "#!/usr/bin/vmware\n# a = \"1\"\n", "a = \"\xff\xfe|zz|4\"\n",
		"a = \"1\" b\na = \"1\"#c\na = 1 2\n", "\v\fa = \"1\"\n",
	} {
		wantBytes(t, parse(t, data), []byte(data))
	}
}

func TestGet(t *testing.T) {
	tests := []struct{ name, file, key, want string }{
		{"plain", `a = "b"`, "a", "b"},
		{"key in any case", `displayName = "b"`, "DISPLAYname", "b"},
		{"no blanks", `a="b"`, "a", "b"},
		{"many blanks", "\t a\t =  \"b\" \t", "a", "b"},
		{"no quotes", "a = b", "a", "b"},
		{"no quotes, comment", "a = b# c", "a", "b"},
		{"no value", "a =", "a", ""},
		{"empty", `a = ""`, "a", ""},
		{"comment", `a = "b" # "c"`, "a", "b"},
		{"hash in quotes", `a = "b # c"`, "a", "b # c"},
		{"equal sign in value", `a = "b=c"`, "a", "b=c"},
		{"escapes", `a = "|22|7C|0A|0d|e9"`, "a", "\"|\n\r\xe9"},
		{"no escapes", `a = "|2|zz|g0|"`, "a", "|2|zz|g0|"},
		{"escape next to pipe", `a = "||41|"`, "a", "|A|"},
		{"zero byte", `a = "b|00c"`, "a", "b\x00c"},
		{"CRLF", "a = \"b\"\r\n", "a", "b"},
		{"carriage return within", "a = \"b\rc\"\n", "a", "b\rc"},
		{"half a CRLF at the end", "a = \"b\"\r", "a", "b"},
		{"byte order mark", "\xef\xbb\xbfa = \"b\"", "a", "b"},
		{"first of two", "a = \"1\"\na = \"2\"\n", "a", "1"},
		{"first proper one", "a 1\na = \"2\"\n", "a", "2"},
		{"UTF-8", `a = "Größe"`, "a", "Größe"},
		{"UTF-8 by name", ".encoding = \"utf-8\"\na = \"Größe\"", "a", "Größe"},
		{"windows-1252", ".encoding = \"windows-1252\"\na = \"\x80 \xfc\"", "a", "€ ü"},
		{"ISO-8859-1 is not windows-1252", ".encoding = \"ISO-8859-1\"\na = \"\x80\xfc\"", "a", "\u0080ü"},
		{"escaped byte in windows-1252", ".encoding = \"windows-1252\"\na = \"|FC\"", "a", "ü"},
		{"Shift_JIS with a pipe in a character", ".encoding = \"Shift_JIS\"\na = \"\x83|7C\"", "a", "ポ"},
		{"GBK", ".encoding = \"GBK\"\na = \"\xd0\xe9\"", "a", "虚"},
		{"GB2312", ".encoding = \"gb2312\"\na = \"\xd0\xe9\"", "a", "虚"},
		{"Korean by its Windows name", ".encoding = \"windows-949\"\na = \"\xb0\xa1\"", "a", "가"},
		{"Big5", ".encoding = \"Big5\"\na = \"\xa4\xa4\"", "a", "中"},
		{"byte order mark against .encoding", "\xef\xbb\xbf.encoding = \"windows-1252\"\na = \"ü\"", "a", "ü"},
		{"encoding after the value", "a = \"\xfc\"\n.encoding = \"windows-1252\"", "a", "ü"},
		{"unknown encoding, ASCII", ".encoding = \"x-klingon\"\na = \"b\"", "a", "b"},
		{"unknown encoding", ".encoding = \"x-klingon\"\na = \"\xfc\"", "a", "\xfc"},
		{"invalid in its encoding", ".encoding = \"GBK\"\na = \"\xff\"", "a", "\xff"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, ok := parse(t, tt.file).Get(tt.key); !ok || got != tt.want {
				t.Errorf("got %q, %v; want %q", got, ok, tt.want)
			}
		})
	}
}

func TestGetNothing(t *testing.T) {
	for _, file := range []string{
		"", "b = \"1\"", "# a = \"1\"", "a", "a\n", "a \"1\"", `a = "1`, `a = "1" 2`, `a = 1 2`,
		`a "=" "1"`, "\u212a = \"Kelvin\"", "aa = \"1\"", "a.b = \"1\"",
	} {
		for _, key := range []string{"a", "k", ""} {
			if got, ok := parse(t, file).Get(key); ok {
				t.Errorf("%q has %q = %q", file, key, got)
			}
		}
	}
}

func TestSet(t *testing.T) {
	tests := []struct{ name, file, want string }{
		{"replaces", "b = \"1\"\na = \"2\" # c\n", "b = \"1\"\na = \"new\" # c\n"},
		{"keeps spelling", " A=\"2\"\r\n", " A=\"new\"\r\n"},
		{"puts quotes", "a = 2 # c\n", "a = \"new\" # c\n"},
		{"fills", "a =\r\n", "a =\"new\"\r\n"},
		{"appends", "b = \"1\"\n", "b = \"1\"\na = \"new\"\n"},
		{"appends with CRLF", "b = \"1\"\r\n", "b = \"1\"\r\na = \"new\"\r\n"},
		{"ends the last line", "b = \"1\"\r\nc = \"2\"", "b = \"1\"\r\nc = \"2\"\r\na = \"new\"\r\n"},
		{"ends the only line", "c = \"2\"", "c = \"2\"\na = \"new\"\n"},
		{"completes a CRLF", "b = \"1\"\r\nc = \"2\"\r", "b = \"1\"\r\nc = \"2\"\r\na = \"new\"\r\n"},
		{"empty file", "", "a = \"new\"\n"},
		{"byte order mark", "\xef\xbb\xbf", "\xef\xbb\xbfa = \"new\"\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := parse(t, tt.file)
			if err := f.Set("a", "new"); err != nil {
				t.Fatal(err)
			}
			wantBytes(t, f, []byte(tt.want))
			if got, _ := f.Get("a"); got != "new" {
				t.Errorf("value is then %q", got)
			}
		})
	}
}

func TestSetAnyValue(t *testing.T) {
	values := []string{"", " ", `"`, "|", "|22", "\n", "\r\n", "\x00", "\t", "\x7f", "Größe", "\xff", "a # b", "€虚ポ"}
	for c := range 256 {
		values = append(values, string([]byte{byte(c)}), string([]byte{'|', byte(c), '1'}))
	}
	f := parse(t, "a = \"1\"\n")
	for _, v := range values {
		if err := f.Set("a", v); err != nil {
			t.Fatalf("%q: %v", v, err)
		}
		for _, f := range []*File{f, parse(t, string(f.Bytes()))} {
			if got, ok := f.Get("a"); !ok || got != v {
				t.Errorf("%q came back as %q", v, got)
			}
		}
		if n := len(f.lines); n != 1 {
			t.Errorf("%q made %d lines", v, n)
		}
	}
}

func TestSetInEncoding(t *testing.T) {
	tests := []struct{ encoding, value, want string }{
		{"windows-1252", "Größe €", "Gr\xf6\xdfe \x80"},
		{"Shift_JIS", "ポ", "\x83|7C"},
		{"GBK", "虚", "\xd0\xe9"},
	}
	for _, tt := range tests {
		f := parse(t, ".encoding = \""+tt.encoding+"\"\n")
		if err := f.Set("a", tt.value); err != nil {
			t.Fatal(err)
		}
		wantBytes(t, f, []byte(".encoding = \""+tt.encoding+"\"\na = \""+tt.want+"\"\n"))
	}
}

func TestSetRefuses(t *testing.T) {
	tests := []struct{ name, file, key, value string }{
		{"two lines", "a = \"1\"\nA = \"2\"\n", "a", "x"},
		{"broken line", "a = \"1\n", "a", "x"},
		{"no key", "", "", "x"},
		{"blank in key", "", "a b", "x"},
		{"equal sign in key", "", "a=b", "x"},
		{"comment as key", "", "#a", "x"},
		{"line feed in key", "", "a\nb", "x"},
		{"encoding", "", ".Encoding", "GBK"},
		{"own key", "", "scsi0:0.VMcrypt.mac", "x"},
		{"not in windows-1252", ".encoding = \"windows-1252\"", "a", "虚"},
		{"not UTF-8", ".encoding = \"windows-1252\"", "a", "\xff"},
		{"would come back as U+F014", ".encoding = \"GB18030\"", "a", "\ue000"},
		{"unknown encoding", ".encoding = \"x-klingon\"", "a", "ü"},
		{"stateful encoding", ".encoding = \"ISO-2022-JP\"", "a", "ポ"},
		{"two encodings", ".encoding = \"GBK\"\n.encoding = \"UTF-8\"", "a", "ü"},
		{"long value", "", "a", strings.Repeat("x", maxLine)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := parse(t, tt.file)
			if err := f.Set(tt.key, tt.value); err == nil {
				t.Errorf("no error, file is %q", f.Bytes())
			}
			wantBytes(t, f, []byte(tt.file))
		})
	}
}

func TestEncodings(t *testing.T) {
	for _, name := range []string{"UTF-16", "UTF-16LE", "UTF-32", "UTF-7", "ISO-2022-JP", "HZ-GB-2312",
		"IBM037", "replacement", "x-klingon"} {
		if c := newCodec(name); c.err == nil {
			t.Errorf("%s is taken for an extension of ASCII", name)
		}
	}
	for _, name := range []string{"windows-1252", "ISO-8859-1", "ISO-8859-15", "GBK", "GB18030", "gb2312",
		"Shift_JIS", "EUC-JP", "EUC-KR", "windows-949", "Big5", "KOI8-R", "windows-1251"} {
		if c := newCodec(name); c.err != nil {
			t.Error(c.err)
		}
	}
}

func TestBounds(t *testing.T) {
	bad := map[string]string{
		"file":      strings.Repeat(strings.Repeat("x", 1023)+"\n", 1024) + "x",
		"line":      strings.Repeat("x", maxLine+1),
		"lines":     strings.Repeat("\n", maxLines+1),
		"zero byte": "a = \"1\"\nb\x00",
	}
	for name, data := range bad {
		if _, err := Parse([]byte(data)); !errors.Is(err, ErrSyntax) {
			t.Errorf("%s: error is %v", name, err)
		}
	}
	good := map[string]string{
		"file":  strings.Repeat(strings.Repeat("x", 1023)+"\n", 1024),
		"line":  strings.Repeat("x", maxLine),
		"lines": strings.Repeat("\n", maxLines),
	}
	for name, data := range good {
		if _, err := Parse([]byte(data)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReadAndWrite(t *testing.T) {
	data := sample(t, "workstation.vmx")
	path := filepath.Join(t.TempDir(), "a.vmx")
	if err := parse(t, string(data)).Write(path); err != nil {
		t.Fatal(err)
	}
	f, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	wantBytes(t, f, data)
	if info, _ := os.Stat(path); info.Mode() != 0o600 {
		t.Errorf("mode is %v", info.Mode())
	}
}

func TestReadRefuses(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Symlink("loop", filepath.Join(dir, "loop")))
	must(t, unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
	must(t, os.Mkdir(filepath.Join(dir, "folder"), 0o700))
	must(t, os.WriteFile(filepath.Join(dir, "image"), make([]byte, 512), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "large"), bytes.Repeat([]byte("\n"), maxSize+1), 0o600))
	for _, name := range []string{"loop", "pipe", "folder", "image", "large", "missing"} {
		_, err := Read(filepath.Join(dir, name))
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: error is %v, want one that names it", name, err)
		}
	}
}

func TestNew(t *testing.T) {
	for _, name := range []string{"disk.img", "a \"b\" |c", "cd.iso", "Größe", "\xff\n"} {
		f := New("nvme0:1", name)
		disks, err := f.Disks()
		if err != nil || len(disks) != 1 || disks[0] != (Disk{"nvme0:1", name}) {
			t.Errorf("%q: disks are %q, %v", name, disks, err)
		}
		wantBytes(t, parse(t, string(f.Bytes())), f.Bytes())
	}
}
