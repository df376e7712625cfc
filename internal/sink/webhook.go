package sink

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"strconv"
)

// The headers of a signed alert: when it was sent, in seconds since 1970, and
// "sha256=" with the HMAC of that number, a dot and the body.
const (
	timestampHeader = "X-Bpfnet-Timestamp"
	signatureHeader = "X-Bpfnet-Signature"
)

// webhook posts documents, one each.
type webhook struct {
	*remote
	key secret // nil: they aren't signed
}

func openWebhook(s Spec, o Options) (driver, error) {
	r, err := openRemote(s, o)
	if err != nil {
		return nil, err
	}
	key, err := newSecret(s, o, "secret")
	return &webhook{r, key}, err
}

func (d *webhook) most() int { return 1 }

func (d *webhook) deliver(ctx context.Context, events []Event) result {
	header, body := jsonHeader(), events[0].Document
	if d.key != nil {
		key, err := d.key()
		if err != nil {
			return result{rest: events, err: err}
		}
		at := strconv.FormatInt(d.now().Unix(), 10)
		header.Set(timestampHeader, at)
		header.Set(signatureHeader, "sha256="+sign(key, at, body))
	}
	_, failed := d.post(ctx, body, header, events)
	return failed
}

func sign(key, at string, body []byte) string {
	mac := hmac.New(sha256.New, []byte(key))
	mac.Write([]byte(at + "."))
	mac.Write(body)
	return hex.EncodeToString(mac.Sum(nil))
}
