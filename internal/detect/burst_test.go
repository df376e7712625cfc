package detect

import (
	"errors"
	"strings"
	"testing"

	"bpfnet/internal/fault"
)

func TestParseBurst(t *testing.T) {
	for text, want := range map[string]string{
		"10MiB/10s": "", "1GB/1m": "1GB/60s", "1536KiB/1m30s": "1536KiB/90s", "1.5MiB/2s": "1536KiB/2s", "80Mbit/1s": "10MB/1s",
		"1kbit/1s": "125B/1s", "0.5kB/1s": "500B/1s", "5000packets/1s": "", "10240KiB/10s,both": "10MiB/10s", "1B/24h": "1B/86400s",
		"1MB/10s,for=30s,transmit": "1MB/10s,transmit,for=30s", "1MB/10s,mad=8.50,receive": "1MB/10s,receive,mad=8.5",
		"1152921504606846976B/1s": "1073741824GiB/1s",
	} {
		b, err := ParseBurst(text)
		if want == "" {
			want = text
		}
		if err != nil || b.String() != want {
			t.Errorf("%s: %s, %v", text, b, err)
		}
	}
	for text, want := range map[string]string{
		"": "no /TIME", "10MiB": "no /TIME", "10/10s": "no unit", "MiB/10s": "number", "10mib/10s": "perhaps MiB", "10parsecs/1s": "no unit",
		"0B/1s": "from 1 to 2^60", "0.5B/1s": "from 1 to 2^60", "2000000000GiB/1s": "from 1 to 2^60", "1kbit/0s": "from 1 to 86400", "1B/500ms": "from 1 to",
		"1B/25h": "from 1 to", "1B/1500ms": "from 1 to", "1B/s": "no time", "1B/-1s": "from 1 to", "-1B/1s": "number", "1e3B/1s": "no unit", "1..5MB/1s": "number",
		".5MB/1s": "number", "5.MB/1s": "number", "1B/1s,": "no option", "1B/1s,up": "no option", "1B/1s,transmit,receive": "already", "1B/1s,both,both": "already",
		"1B/1s,for=2s,for=3s": "already", "1B/1s,mad=1,mad=1": "already", "1B/10s,for=19s": "shorter than two windows", "1B/1s,mad=0": "from 0.1", "1B/1s,mad=NaN": "from 0.1",
		"1B/1s,mad=1e9": "from 0.1", "1B/1s,transmit=1": "no option", "0.1packets/1s": "of packets from 1",
	} {
		_, err := ParseBurst(text)
		if !errors.Is(err, fault.ErrUsage) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

// FuzzParseBurst: what is understood is written so that it is understood again, as
// the same rule.
func FuzzParseBurst(f *testing.F) {
	for _, text := range []string{"10MiB/10s", "80Mbit/1s,transmit", "5000packets/1s,receive,for=30s", "1.5kB/1m,mad=8", "1B/24h,for=168h,mad=0.1,both", "9/", ",/=,"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		b, err := ParseBurst(text)
		if err != nil {
			if !errors.Is(err, fault.ErrUsage) || strings.ContainsRune(err.Error(), '\n') && !strings.ContainsRune(text, '\n') {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		again, err := ParseBurst(b.String())
		if err != nil || again != b || b.Amount == 0 || b.Window == 0 {
			t.Errorf("%q is %+v, %q is %+v, %v", text, b, b.String(), again, err)
		}
	})
}
