package blockcrypt

import (
	"testing"
	"testing/synctest"
)

func TestClaimsApartOrSharedDoNotWait(t *testing.T) {
	c := newClaims()
	held := []*claim{
		c.begin(0, 10, true),
		c.begin(10, 20, true),
		c.begin(20, 30, false),
		c.begin(25, 35, false),
	}
	for _, h := range held {
		c.end(h)
	}
	if len(c.queue) != 0 {
		t.Errorf("%d claims are left", len(c.queue))
	}
}

// TestClaimsAreServedInOrder has a reader, a writer, and a reader that came after
// the writer and must not overtake it.
func TestClaimsAreServedInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClaims()
		var order []string
		use := func(name string, exclusive bool) {
			own := c.begin(5, 15, exclusive)
			order = append(order, name)
			c.end(own)
		}
		first := c.begin(0, 10, false)
		go use("writer", true)
		synctest.Wait()
		go use("reader", false)
		synctest.Wait()
		if len(order) != 0 {
			t.Errorf("%v did not wait", order)
		}
		c.end(first)
		synctest.Wait()
		if len(order) != 2 || order[0] != "writer" {
			t.Errorf("served in the order %v", order)
		}
	})
}
