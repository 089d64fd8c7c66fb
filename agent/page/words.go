package page

import (
	"fmt"
	"html/template"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// functions are for templates.
var functions = template.FuncMap{
	"clean": clean, "plural": plural, "size": size,
	"dict": func(icon, text string) map[string]string { return map[string]string{"Icon": icon, "Text": text} },
}

// clean shows what can't be seen, such as line ends and what turns the direction of
// writing, by its number, and cuts what is too long. Names and paths come from whoever
// may write a datastore.
func clean(text string) string {
	var b strings.Builder
	for _, r := range text {
		if b.Len() >= maxText {
			return b.String() + "…"
		}
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			fmt.Fprintf(&b, `\u%04x`, r)
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

// quote makes one argument of a shell's command of a path.
func quote(path string) string {
	if !strings.ContainsFunc(path, func(r rune) bool {
		return !strings.ContainsRune("/._-+:@%=,", r) && !('0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z')
	}) {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}

// amount is a number as people read it, and what it is exactly.
type amount struct{ Short, Exact string }

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}

// size shows a number of bytes with three digits, rounded down.
func size(bytes uint64) amount {
	exact := strconv.FormatUint(bytes, 10) + " bytes"
	if bytes < 1<<10 {
		return amount{strconv.FormatUint(bytes, 10) + " B", exact}
	}
	value, unit := float64(bytes), -1
	for value >= 1<<10 && unit < len("KMGTPE")-1 {
		value, unit = value/(1<<10), unit+1
	}
	decimals := 0
	if value < 10 && value != math.Trunc(value) {
		decimals = 1
	}
	factor := math.Pow10(decimals)
	return amount{strconv.FormatFloat(math.Floor(value*factor)/factor, 'f', decimals, 64) + " " + "KMGTPE"[unit:unit+1] + "iB", exact}
}

func milliseconds(ms float64) string {
	if ms < 1 {
		return "< 1 ms"
	}
	return strconv.FormatFloat(ms, 'f', 0, 64) + " ms"
}

// moment is a time, as long ago.
type moment struct{ Ago, Exact, ISO, Clock string }

func since(t, now time.Time) moment {
	t = t.UTC()
	return moment{
		Ago: span(now.Sub(t)), Exact: t.Format("2006-01-02 15:04:05 UTC"), ISO: t.Format(time.RFC3339), Clock: t.Format("15:04:05 UTC"),
	}
}

const day = 24 * time.Hour

// span shows how long something took with two units at most. Less than a minute is not
// told apart: what is shown would change with every look.
func span(d time.Duration) string {
	days, hours, minutes := int(d/day), int(d%day/time.Hour), int(d%time.Hour/time.Minute)
	switch {
	case d < time.Minute:
		return "< 1 min"
	case d < time.Hour:
		return fmt.Sprintf("%d min", minutes)
	case d < day:
		return fmt.Sprintf("%d h %d min", hours, minutes)
	case d < 10*day:
		return fmt.Sprintf("%d d %d h", days, hours)
	}
	return fmt.Sprintf("%d d", days)
}

// expiry is when a certificate ends.
type expiry struct {
	moment
	Level string
	Text  string
}

// When the end of a certificate is something to look at, as in the agent's warnings.
const (
	expirySoon     = 60 * day
	expiryVerySoon = 7 * day
)

func expires(t *time.Time, now time.Time) *expiry {
	if t == nil {
		return nil
	}
	e := &expiry{moment: since(*t, now), Level: levelOK}
	left := t.Sub(now)
	switch {
	case left < expiryVerySoon:
		e.Level = levelCritical
	case left < expirySoon:
		e.Level = levelWarning
	}
	e.Text = plural(int(left/day), "day", "days")
	if left < 0 {
		e.Text = "expired"
	}
	return e
}
