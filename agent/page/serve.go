package page

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/vmcrypt/vmcrypt/internal/listen"
)

// Limits of what clients send, of how long they take, and of how many there are.
const (
	maxHeader  = 16 << 10 // bytes
	readTime   = 5 * time.Second
	answerTime = firstWait + 15*time.Second
	idleTime   = 30 * time.Second
	endTime    = time.Second // for requests under way
	maxClients = 64          // connections
)

// Serve answers clients until ctx ends, and closes the listener.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{
		Handler: h, ErrorLog: slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug), MaxHeaderBytes: maxHeader,
		ReadHeaderTimeout: readTime, ReadTimeout: readTime, WriteTimeout: answerTime, IdleTimeout: idleTime,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		soon, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTime)
		defer cancel()
		if s.Shutdown(soon) != nil {
			s.Close()
		}
	})
	err := s.Serve(listen.Limit(l, maxClients))
	if stop() {
		return errors.Join(err, s.Close())
	}
	<-ended
	return nil
}
