package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"github.com/vmcrypt/vmcrypt/internal/testtool"
)

// writtenManual is a folder with what "vmcrypt manual" writes.
func writtenManual(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if code := run(t.Context(), []string{"vmcrypt", "manual", dir}); code != exitDone {
		t.Fatalf("exit code %d", code)
	}
	return dir
}

// visible lists the commands that people see by the words that lead to them.
func visible(commands []*cli.Command, before string) []string {
	var all []string
	for _, c := range commands {
		if !c.Hidden {
			all = append(all, before+c.Name)
			all = append(all, visible(c.Subcommands, before+c.Name+" ")...)
		}
	}
	return all
}

// TestManualPages: each command has a page, which man(1) has nothing against and which
// shows every flag.
func TestManualPages(t *testing.T) {
	man := testtool.Need(t, "man")
	pages := filepath.Join(writtenManual(t), "man")
	want := []string{"vmcrypt.1", "vmcrypt-config.5"}
	for _, words := range visible(newApp().Commands, "vmcrypt ") {
		want = append(want, strings.ReplaceAll(words, " ", "-")+".1")
	}
	for _, page := range want {
		text, warnings := readPage(t, man, filepath.Join(pages, page))
		if warnings != "" {
			t.Errorf("%s: %s", page, warnings)
		}
		for _, section := range []string{"NAME", "DESCRIPTION", "SEE ALSO"} {
			if !strings.Contains(text, section) && (section != "DESCRIPTION" || strings.HasSuffix(page, "5")) {
				t.Errorf("%s has no section %s", page, section)
			}
		}
	}
	text, _ := readPage(t, man, filepath.Join(pages, "vmcrypt-encrypt.1"))
	for _, expected := range []string{"--sector-size BYTES", "--kek ID", "-o PATH", "EXIT STATUS", "the disk is in use", "vmcrypt-config(5)"} {
		if !strings.Contains(text, expected) {
			t.Errorf("the page of encrypt has no %q:\n%s", expected, text)
		}
	}
	const command = "  virsh dumpxml --inactive --security-info web01 | vmcrypt libvirt-xml web01.vmx --domain - | virsh define /dev/stdin\n"
	if text, _ := readPage(t, man, filepath.Join(pages, "vmcrypt-libvirt-xml.1")); !strings.Contains(text, command) {
		t.Errorf("the page of libvirt-xml has not in one line: %s\n%s", command, text)
	}
	if entries, err := os.ReadDir(pages); err != nil || len(entries) != len(want) {
		t.Errorf("%d pages for %d commands, %v", len(entries), len(want), err)
	}
}

func readPage(t *testing.T, man, path string) (text, warnings string) {
	t.Helper()
	cmd := exec.Command(man, "--warnings", "-P", "cat", "-l", path)
	cmd.Env = append(os.Environ(), "MANWIDTH=100", "MAN_KEEP_FORMATTING=", "LC_ALL=C.UTF-8", "GROFF_NO_SGR=1", "MANROFFOPT=-c")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s", path, err, errs.String())
	}
	return out.String(), errs.String()
}

// TestFlagsOfPaths: shells complete the values of all flags that take a path.
func TestFlagsOfPaths(t *testing.T) {
	for _, n := range tree(newApp()) {
		for _, f := range n.flags() {
			placeholder, _ := value(f)
			if path := slices.Contains([]string{"FILE", "PATH", "DIR"}, placeholder); path != takesFile(f) {
				t.Errorf("%s --%s %s: completed as a path: %v", n.name(), f.Names()[0], placeholder, takesFile(f))
			}
		}
	}
}

// completions are what a shell is to offer for the last word, among others and not.
var completions = []struct {
	words      []string
	offers     []string
	offersNone []string
}{
	{[]string{""}, []string{"encrypt", "kms", "audit"}, []string{"disk-server", "manual", "serve-one"}},
	{[]string{"enc"}, []string{"encrypt"}, []string{"decrypt"}},
	{[]string{"kms", ""}, []string{"serve", "client", "rotate-root"}, []string{"encrypt"}},
	{[]string{"kms", "client", "re"}, []string{"revoke"}, []string{"restore"}},
	{[]string{"--config", "kms", "enc"}, []string{"encrypt"}, nil},
	{[]string{"encrypt", "--sec"}, []string{"--sector-size"}, []string{"--kek"}},
	{[]string{"encrypt", "web01.vmx", "--ho"}, []string{"--holes"}, nil},
	{[]string{"encrypt", "--holes", ""}, []string{"preserve", "fill"}, []string{"web01.vmx"}},
	{[]string{"encrypt", "--output", "web"}, []string{"web01.vmx"}, nil},
	{[]string{"encrypt", "web"}, []string{"web01.vmx", "web 02.vmx"}, []string{"encrypt"}},
	{[]string{"kms", "serve", "--list"}, []string{"--listen"}, nil},
	{[]string{"list", "web"}, nil, []string{"web01.vmx"}},
}

// datastore is a folder with files to complete.
func datastoreToComplete(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"web01.vmx", "web 02.vmx"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// complete runs a script of a shell, with the words as its arguments, which prints
// what the shell offers, a line each.
func complete(t *testing.T, shell string, options ...string) {
	t.Helper()
	program, err := exec.LookPath(shell)
	if err != nil {
		t.Skipf("%s is not installed", shell)
	}
	dir := datastoreToComplete(t)
	for _, c := range completions {
		cmd := exec.Command(program, append(slices.Clone(options), c.words...)...)
		cmd.Dir = dir
		var errs bytes.Buffer
		cmd.Stderr = &errs
		out, err := cmd.Output()
		if err != nil || errs.Len() > 0 {
			t.Fatalf("%q: %v\n%s", c.words, err, errs.String())
		}
		offered := strings.Split(string(out), "\n")
		for _, word := range c.offers {
			if !slices.Contains(offered, word) {
				t.Errorf("%q: no %q among %q", c.words, word, offered)
			}
		}
		for _, word := range c.offersNone {
			if slices.Contains(offered, word) {
				t.Errorf("%q: %q among %q", c.words, word, offered)
			}
		}
	}
}

func TestBashCompletion(t *testing.T) {
	script := filepath.Join(writtenManual(t), "bash/vmcrypt")
	complete(t, "bash", "--norc", "-c", `
		compopt() { :; } # it works only while the shell itself completes
		source "$0"
		COMP_WORDS=(vmcrypt "$@") COMP_CWORD=$#
		_vmcrypt
		printf '%s\n' "${COMPREPLY[@]}"`, script)
}

func TestFishCompletion(t *testing.T) {
	script := filepath.Join(writtenManual(t), "fish/vmcrypt.fish")
	complete(t, "fish", "--no-config", "-c", `
		source $argv[1]
		complete -C "vmcrypt "(string join ' ' -- $argv[2..]) | string replace -r '\t.*' '' | string unescape
		true`, script)
}

// TestZshCompletion types words and a tab into a zsh that writes down what it would offer.
func TestZshCompletion(t *testing.T) {
	testtool.Long(t)
	script := filepath.Join(writtenManual(t), "zsh/_vmcrypt")
	complete(t, "zsh", "-f", "-c", zshTerminal, script)
}

const zshTerminal = `
offers=$(mktemp)
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell "PS1=; fpath=(${0:h} \$fpath); autoload -U compinit; compinit -u -D"
zpty -w shell "offered() { print -rl -- \"\$@\" >>$offers; }
compadd() {
    local -a all
    if [[ \${@[1,(i)(-|--)]} != *-(O|A|D)\ * ]]; then
        builtin compadd -O all \"\$@\"
        offered \"\${all[@]}\"
    fi
    builtin compadd \"\$@\"
}
ended() { print END >>$offers; }
comppostfuncs=(ended)
bindkey '^I' complete-word"
zpty -w -n shell "vmcrypt ${(j: :)@}"
zpty -w -n shell $'\t'
repeat 300; do
    zpty -r -t shell line >/dev/null
    grep -q END $offers && break
    sleep 0.1
done
zpty -d shell
print -rl -- ${(Q)${(f)"$(<$offers)"}}
rm $offers
`
