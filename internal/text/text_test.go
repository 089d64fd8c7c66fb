package text

import "testing"

func TestClip(t *testing.T) {
	for _, test := range []struct {
		text  string
		limit int
		want  string
	}{{"", 3, ""}, {"abc", 3, "abc"}, {"abcd", 3, "abc"}, {"aäb", 3, "aä"}, {"aäb", 2, "a"}, {"a\xffb", 3, "ab"}} {
		if got := Clip(test.text, test.limit); got != test.want {
			t.Errorf("%q of %d bytes: %q", test.text, test.limit, got)
		}
	}
}
