package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/vmcrypt/vmcrypt/internal/config"
)

// manualCommand is for who makes packages.
func manualCommand() *cli.Command {
	return command(cli.Command{
		Name:      "manual",
		Usage:     "write the manual pages and the completions of shells",
		ArgsUsage: "DIR",
		Hidden:    true,
		Action:    writeManual,
	})
}

func writeManual(c *cli.Context) error {
	args, err := nArgs(c, 1, 1)
	if err != nil {
		return err
	}
	words := tree(c.App)
	files := map[string]string{
		"man/vmcrypt-config.5": configPage(),
		"bash/vmcrypt":         bashCompletion(words),
		"zsh/_vmcrypt":         zshCompletion(words),
		"fish/vmcrypt.fish":    fishCompletion(words),
	}
	for _, n := range words {
		files["man/"+n.page()+".1"] = n.text(words)
	}
	for name, text := range files {
		path := filepath.Join(args[0], name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // for everybody
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil { //nolint:gosec // for everybody
			return err
		}
	}
	return nil
}

// node is a command with the words that lead to it.
type node struct {
	*cli.Command
	words []string // without vmcrypt
}

// tree lists the commands that people see: the program itself first, and each before
// its subcommands.
func tree(app *cli.App) []node {
	root := &cli.Command{
		Name: app.Name, Usage: app.Usage, Description: app.Description, Subcommands: app.Commands,
		Flags: []cli.Flag{cli.VersionFlag},
	}
	return branches(node{Command: root})
}

func branches(n node) []node {
	all := []node{n}
	for _, c := range n.children() {
		all = append(all, branches(c)...)
	}
	return all
}

func (n node) children() []node {
	var visible []node
	for _, c := range n.Subcommands {
		if !c.Hidden && c.Name != "help" {
			visible = append(visible, node{c, append(slices.Clone(n.words), c.Name)})
		}
	}
	return visible
}

// flags are the flags that people see, with --help, which the library adds, and those
// that may stand before the name of a command.
func (n node) flags() []cli.DocGenerationFlag {
	all := slices.Clone(n.Flags)
	if len(n.Subcommands) > 0 {
		all = append(all, sharedFlags()...)
	}
	if !slices.ContainsFunc(all, func(f cli.Flag) bool { return slices.Contains(f.Names(), "help") }) {
		all = append(all, cli.HelpFlag)
	}
	var shown []cli.DocGenerationFlag
	for _, f := range all {
		if d, ok := f.(cli.DocGenerationFlag); ok {
			shown = append(shown, d)
		}
	}
	return shown
}

// name is the command as it is typed.
func (n node) name() string { return strings.Join(append([]string{"vmcrypt"}, n.words...), " ") }

// page is the name of the manual page.
func (n node) page() string { return strings.ReplaceAll(n.name(), " ", "-") }

// text is the manual page in the language of man(7).
func (n node) text(all []node) string {
	var b strings.Builder
	heading(&b, n.page(), 1)
	section(&b, "NAME", roff(n.page())+" \\- "+roff(n.Usage))
	section(&b, "SYNOPSIS", n.synopsis())
	section(&b, "DESCRIPTION", paragraphs(strings.TrimSuffix(n.Description, exitCodeHelp)))
	if children := n.children(); len(children) > 0 {
		section(&b, "COMMANDS", commandList(children))
	}
	section(&b, "OPTIONS", n.options())
	section(&b, "EXIT STATUS", exitStatus())
	section(&b, "FILES", files)
	section(&b, "SEE ALSO", n.seeAlso(all))
	return b.String()
}

func heading(b *strings.Builder, page string, number int) {
	fmt.Fprintf(b, ".TH %s %d \"\" \"vmcrypt %s\" \"vmcrypt manual\"\n", roff(strings.ToUpper(page)), number, roff(version))
}

func section(b *strings.Builder, title, text string) {
	if text = strings.TrimSpace(text); text != "" {
		fmt.Fprintf(b, ".SH %s\n%s\n", title, text)
	}
}

func (n node) synopsis() string {
	text := ".B " + roff(n.name()) + "\n"
	if len(n.Subcommands) > 0 {
		return text + ".I COMMAND\n[...]"
	}
	return text + "[\\fIOPTIONS\\fR] " + roff(n.ArgsUsage)
}

func commandList(children []node) string {
	var b strings.Builder
	for _, c := range children {
		fmt.Fprintf(&b, ".TP\n.BR %s (1)\n%s\n", roff(c.page()), roff(c.Usage))
	}
	return b.String()
}

func (n node) options() string {
	var b strings.Builder
	for _, f := range n.flags() {
		placeholder, usage := value(f)
		names := make([]string, 0, 2)
		for _, name := range f.Names() {
			names = append(names, "\\fB"+roff(dashed(name))+"\\fR")
		}
		if placeholder != "" {
			placeholder = " \\fI" + roff(placeholder) + "\\fR"
		}
		fmt.Fprintf(&b, ".TP\n%s%s\n%s\n", strings.Join(names, ", "), placeholder, roff(usage))
	}
	return b.String()
}

// dashed is a flag as it is typed.
func dashed(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

var quoted = regexp.MustCompile("`([^`]*)`")

// value gives what stands for the value of a flag, if it takes one, and its usage.
func value(f cli.DocGenerationFlag) (placeholder, usage string) {
	usage = quoted.ReplaceAllString(f.GetUsage(), "$1")
	if !f.TakesValue() {
		return "", usage
	}
	if text := f.GetDefaultText(); text != "" && text != `""` && text != "[]" {
		usage += " (default: " + strings.Trim(text, `"`) + ")"
	}
	placeholder = "VALUE"
	if m := quoted.FindStringSubmatch(f.GetUsage()); m != nil {
		placeholder = m[1]
	}
	return placeholder, usage
}

// exitStatus is the list of exit codes in words that are elsewhere, too.
func exitStatus() string {
	_, list, _ := strings.Cut(strings.ReplaceAll(exitCodeHelp, "\n", " "), ": ")
	var b strings.Builder
	for entry := range strings.SplitSeq(strings.TrimSuffix(list, "."), "; ") {
		code, meaning, _ := strings.Cut(entry, " ")
		fmt.Fprintf(&b, ".TP\n.B %s\n%s\n", code, roff(meaning))
	}
	return b.String()
}

const files = `.TP
.I /etc/vmcrypt/config.yaml
The configuration of root; others have theirs in
.IR ~/.config/vmcrypt ,
and
.B VMCRYPT_HOME
names another folder for it and for all that follows: see
.BR vmcrypt\-config (5).
.TP
.I /var/lib/vmcrypt
The local key manager and the audit logs.
.TP
.I /run/vmcrypt
The sockets of the agent and of the disks that are unlocked.`

// seeAlso leads to the command above and to those below.
func (n node) seeAlso(all []node) string {
	var pages []string
	for _, other := range all {
		above := len(other.words) < len(n.words) && slices.Equal(other.words, n.words[:len(other.words)])
		below := len(other.words) == len(n.words)+1 && slices.Equal(n.words, other.words[:len(n.words)])
		if above || below {
			pages = append(pages, ".BR "+roff(other.page())+" (1)")
		}
	}
	pages = append(pages, ".BR vmcrypt\\-config (5)")
	return strings.Join(pages, ",\n")
}

// configPage is the manual page of the configuration: the one that init writes explains
// itself.
func configPage() string {
	var b strings.Builder
	heading(&b, "vmcrypt-config", 5)
	section(&b, "NAME", "vmcrypt\\-config \\- the configuration of vmcrypt")
	section(&b, "DESCRIPTION", paragraphs("vmcrypt reads config.yaml below $VMCRYPT_HOME, else in /etc/vmcrypt for root and in ~/.config/vmcrypt for others; --config names another file.\n\n"+
		"The file is YAML. A key that vmcrypt does not know is an error, which names file and line. \"vmcrypt init\" writes this one:"))
	fmt.Fprintf(&b, ".PP\n.nf\n%s\n.fi\n", roff(string(config.Template("127.0.0.1:5696"))))
	section(&b, "SEE ALSO", ".BR vmcrypt (1),\n.BR vmcrypt\\-init (1),\n.BR vmcrypt\\-agent (1),\n.BR vmcrypt\\-kms\\-serve (1)")
	return b.String()
}

// examples are lines that stay as they are.
var examples = regexp.MustCompile(`(?m)^ .*(\n .*)*`)

func paragraphs(text string) string {
	text = strings.ReplaceAll(roff(strings.TrimSpace(text)), "\n\n", "\n.PP\n")
	return examples.ReplaceAllString(text, ".nf\n$0\n.fi")
}

// roff is text in which nothing is a command of roff.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`).Replace(text)
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			lines[i] = `\&` + line
		}
	}
	return strings.Join(lines, "\n")
}
