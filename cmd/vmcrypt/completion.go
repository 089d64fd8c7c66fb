package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// The completions of shells are made of the commands, once for each release: nothing of
// vmcrypt runs while somebody types.

// choices are the values of flags that take only these.
var choices = map[string][]string{
	"format":      {"raw", "vmdk"},
	"holes":       {"preserve", "fill"},
	"root-key":    {"file", "passphrase", "systemd"},
	"sector-size": {"512", "4096"},
}

// takesFile tells whether the value of a flag is a path.
func takesFile(f cli.Flag) bool {
	switch f := f.(type) {
	case *cli.StringFlag:
		return f.TakesFile
	case *cli.StringSliceFlag:
		return f.TakesFile
	}
	return false
}

// path is what the words so far come to, in the scripts.
func (n node) path() string { return strings.Join(n.words, " ") }

// valueFlags are all flags that take a value, as they are typed: those of paths, and
// the others.
func valueFlags(all []node) (paths, others []string) {
	for _, n := range all {
		for _, f := range n.flags() {
			for _, name := range f.Names() {
				switch word := dashed(name); {
				case !f.TakesValue() || slices.Contains(paths, word) || slices.Contains(others, word):
				case takesFile(f):
					paths = append(paths, word)
				default:
					others = append(others, word)
				}
			}
		}
	}
	return paths, others
}

func commandNames(nodes []node) []string {
	all := make([]string, len(nodes))
	for i, n := range nodes {
		all[i] = n.Name
	}
	return all
}

func flagWords(n node) []string {
	var words []string
	for _, f := range n.flags() {
		for _, name := range f.Names() {
			words = append(words, dashed(name))
		}
	}
	return words
}

func sortedChoices() []string {
	flags := make([]string, 0, len(choices))
	for flag := range choices {
		flags = append(flags, flag)
	}
	slices.Sort(flags)
	return flags
}

func bashCompletion(all []node) string {
	var b strings.Builder
	paths, others := valueFlags(all)
	fmt.Fprintf(&b, `# Completion of vmcrypt in bash.

# _vmcrypt_path sets path to the command that the words before the cursor name.
_vmcrypt_path() {
    local i word
    path=
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        case $word in
            %s) ((i++)); continue ;;
            -*) continue ;;
        esac
        case "${path:+$path }$word" in
            %s) path=${path:+$path }$word ;;
            *) return ;;
        esac
    done
}

_vmcrypt() {
    local path cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} flags= commands= files=
    COMPREPLY=()
    case $prev in
`, strings.Join(append(slices.Clone(paths), others...), " | "), alternatives(all[1:]))
	for _, flag := range sortedChoices() {
		fmt.Fprintf(&b, "        --%s) COMPREPLY=($(compgen -W '%s' -- \"$cur\")); return ;;\n", flag, strings.Join(choices[flag], " "))
	}
	fmt.Fprintf(&b, "        %s) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- \"$cur\"); return ;;\n", strings.Join(paths, " | "))
	fmt.Fprintf(&b, "        %s) return ;;\n    esac\n    _vmcrypt_path\n    case $path in\n", strings.Join(others, " | "))
	for _, n := range all {
		fmt.Fprintf(&b, "        '%s') flags='%s' commands='%s' files=%s ;;\n",
			n.path(), strings.Join(flagWords(n), " "), strings.Join(commandNames(n.children()), " "), yes(n.ArgsUsage != ""))
	}
	b.WriteString(`    esac
    if [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$flags" -- "$cur"))
    elif [[ $commands ]]; then
        COMPREPLY=($(compgen -W "$commands" -- "$cur"))
    elif [[ $files ]]; then
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
    fi
}

complete -F _vmcrypt vmcrypt
`)
	return b.String()
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return ""
}

// alternatives is a shell's pattern for the words that lead to commands.
func alternatives(nodes []node) string {
	words := make([]string, len(nodes))
	for i, n := range nodes {
		words[i] = "'" + n.path() + "'"
	}
	return strings.Join(words, " | ")
}

func zshCompletion(all []node) string {
	var b strings.Builder
	b.WriteString("#compdef vmcrypt\n\n# Completion of vmcrypt in zsh.\n")
	for _, n := range all {
		fmt.Fprintf(&b, "\n%s() {\n", zshFunction(n))
		if children := n.children(); len(children) > 0 {
			zshGroup(&b, n, children)
		} else {
			zshCommand(&b, n)
		}
		b.WriteString("}\n")
	}
	b.WriteString("\n_vmcrypt \"$@\"\n")
	return b.String()
}

func zshFunction(n node) string {
	return strings.ReplaceAll("_"+n.name(), " ", "_")
}

func zshGroup(b *strings.Builder, n node, children []node) {
	b.WriteString("    local line state\n    local -a commands\n    commands=(\n")
	for _, c := range children {
		fmt.Fprintf(b, "        %s\n", single(c.Name+":"+strings.ReplaceAll(c.Usage, ":", `\:`)))
	}
	b.WriteString("    )\n    _arguments -C \\\n")
	zshFlags(b, n)
	b.WriteString("        '1:command:->command' '*::argument:->argument'\n    case $state in\n" +
		"        command) _describe -t commands command commands ;;\n        argument)\n            case $line[1] in\n")
	for _, c := range children {
		fmt.Fprintf(b, "                %s) %s ;;\n", c.Name, zshFunction(c))
	}
	b.WriteString("            esac ;;\n    esac\n")
}

func zshCommand(b *strings.Builder, n node) {
	b.WriteString("    _arguments \\\n")
	zshFlags(b, n)
	if n.ArgsUsage == "" {
		b.WriteString("        ':: :'\n")
		return
	}
	fmt.Fprintf(b, "        %s\n", single("*:"+n.ArgsUsage+":_files"))
}

func zshFlags(b *strings.Builder, n node) {
	for _, f := range n.flags() {
		placeholder, usage := value(f)
		for _, name := range f.Names() {
			spec := "*" + dashed(name) + "[" + strings.NewReplacer("[", `\[`, "]", `\]`, ":", `\:`).Replace(usage) + "]"
			switch {
			case placeholder == "":
			case choices[name] != nil:
				spec += ":" + placeholder + ":(" + strings.Join(choices[name], " ") + ")"
			case takesFile(f):
				spec += ":" + placeholder + ":_files"
			default:
				spec += ":" + strings.ReplaceAll(placeholder, ":", `\:`) + ": "
			}
			fmt.Fprintf(b, "        %s \\\n", single(spec))
		}
	}
}

// single is text in single quotes, for shells.
func single(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

func fishCompletion(all []node) string {
	var b strings.Builder
	paths, others := valueFlags(all)
	fmt.Fprintf(&b, `# Completion of vmcrypt in fish.

# __vmcrypt_at tells whether the words before the cursor name just this command.
function __vmcrypt_at
    set -l path
    set -l value
    for word in (commandline -opc)[2..]
        if test -n "$value"
            set value
            continue
        end
        switch $word
            case %s
                set value yes
                continue
            case '-*'
                continue
        end
        contains -- (string join ' ' $path $word) %s
        or break
        set path $path $word
    end
    test "$path" = "$argv"
end

complete -c vmcrypt -f
`, strings.Join(append(slices.Clone(paths), others...), " "), strings.ReplaceAll(alternatives(all[1:]), " | ", " "))
	for _, n := range all {
		condition := "-n '__vmcrypt_at " + n.path() + "'"
		for _, c := range n.children() {
			fmt.Fprintf(&b, "complete -c vmcrypt %s -a %s -d %s\n", condition, c.Name, fishWord(c.Usage))
		}
		if n.ArgsUsage != "" {
			fmt.Fprintf(&b, "complete -c vmcrypt %s -F\n", condition)
		}
		for _, f := range n.flags() {
			fmt.Fprintf(&b, "complete -c vmcrypt %s%s\n", condition, fishFlag(f))
		}
	}
	return b.String()
}

func fishFlag(f cli.DocGenerationFlag) string {
	placeholder, usage := value(f)
	text, main := "", f.Names()[0]
	for _, name := range f.Names() {
		text += map[bool]string{true: " -s ", false: " -l "}[len(name) == 1] + name
	}
	switch {
	case placeholder == "":
	case choices[main] != nil:
		text += " -x -a " + fishWord(strings.Join(choices[main], " "))
	case takesFile(f):
		text += " -r -F"
	default:
		text += " -x"
	}
	return text + " -d " + fishWord(usage)
}

// fishWord is text in single quotes, in which fish knows the backslash.
func fishWord(text string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, "'", `\'`).Replace(text) + "'"
}
