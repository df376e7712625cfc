package datapath

import (
	"fmt"

	"bpfnet/internal/netns"
)

// CheckTarget says whether what a request attaches to is there, without a look
// at the program, which need not be loaded. ErrNotFound: it isn't.
func (e *Engine) CheckTarget(req AttachRequest) error {
	err := netns.Do(e.netns, func() (err error) {
		switch {
		case req.Device != "":
			_, err = req.device()
		case req.Cgroup != "":
			_, err = resolveCgroup(req.Cgroup)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("attach %s %q%s: %w", req.Hook, req.Name, requestTarget(req), err)
	}
	return nil
}
