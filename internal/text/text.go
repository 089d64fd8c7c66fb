// Package text bounds texts that others have written.
package text

import "strings"

// Clip gives the begin of a text, of at most limit bytes, as valid UTF-8 and in memory of
// its own: it does not keep the rest.
func Clip(s string, limit int) string {
	return strings.Clone(strings.ToValidUTF8(s[:min(len(s), limit)], ""))
}
