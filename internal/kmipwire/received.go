package kmipwire

import "net"

// received notes the buffers that a connection is read into. Package tls
// decrypts in place and forgets: without this, the last messages would stay in
// memory for as long as nothing else comes to lie there.
type received struct {
	net.Conn
	buffers [][]byte
}

func (r *received) Read(b []byte) (int, error) {
	r.note(b[:cap(b)])
	return r.Conn.Read(b)
}

// note keeps b, unless it is the tail of the buffer that was noted last: the
// reader fills a few buffers in many steps.
func (r *received) note(b []byte) {
	if len(b) == 0 {
		return
	}
	if n := len(r.buffers); n > 0 {
		last := r.buffers[n-1]
		if &last[len(last)-1] == &b[len(b)-1] {
			if len(b) > len(last) {
				r.buffers[n-1] = b
			}
			return
		}
	}
	r.buffers = append(r.buffers, b)
}

// wipe clears the buffers. Nothing may be read from the connection any more.
func (r *received) wipe() {
	for _, b := range r.buffers {
		clear(b)
	}
	r.buffers = nil
}
