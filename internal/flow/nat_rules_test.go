package flow

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"bpfnet/internal/testkit"
)

// What the kernel's headers have of nf_tables, and x/sys doesn't.
const (
	batchBegin, batchEnd              = 0x10, 0x11
	prerouting, output, postrouting   = 0, 3, 4
	networkHeader, equal, destination = 1, 0, 1
)

// rules are requests to nf_tables, of one family.
type rules struct {
	family byte
	raw    []byte
}

func (r *rules) add(kind, flags int, attributes ...*nl.RtAttr) {
	request := nl.NewNetlinkRequest(kind, flags)
	header := &nl.Nfgenmsg{NfgenFamily: r.family, Version: nl.NFNETLINK_V0}
	if kind == batchBegin || kind == batchEnd {
		header = &nl.Nfgenmsg{Version: nl.NFNETLINK_V0, ResId: unix.NFNL_SUBSYS_NFTABLES << 8}
	}
	request.AddData(header)
	for _, a := range attributes {
		request.AddData(a)
	}
	r.raw = append(r.raw, request.Serialize()...)
}

func text(kind int, value string) *nl.RtAttr { return nl.NewRtAttr(kind, nl.ZeroTerminated(value)) }
func number(kind int, value int32) *nl.RtAttr {
	return nl.NewRtAttr(kind, binary.BigEndian.AppendUint32(nil, uint32(value)))
}

func nested(kind int, within ...*nl.RtAttr) *nl.RtAttr {
	a := nl.NewRtAttr(kind|unix.NLA_F_NESTED, nil)
	for _, w := range within {
		a.AddChild(w)
	}
	return a
}

func value(kind int, raw []byte) *nl.RtAttr {
	return nested(kind, nl.NewRtAttr(unix.NFTA_DATA_VALUE, raw))
}

func expression(name string, data ...*nl.RtAttr) *nl.RtAttr {
	return nested(unix.NFTA_LIST_ELEM, text(unix.NFTA_EXPR_NAME, name), nested(unix.NFTA_EXPR_DATA, data...))
}

// rule adds a chain of NAT at a hook, with one rule.
func (r *rules) rule(hook, priority int32, expressions ...*nl.RtAttr) {
	table, chain := "bpfnet", string(rune('a'+len(r.raw)%26))+"chain"
	r.add(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, text(unix.NFTA_TABLE_NAME, table))
	r.add(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, text(unix.NFTA_CHAIN_TABLE, table), text(unix.NFTA_CHAIN_NAME, chain),
		nested(unix.NFTA_CHAIN_HOOK, number(unix.NFTA_HOOK_HOOKNUM, hook), number(unix.NFTA_HOOK_PRIORITY, priority)), text(unix.NFTA_CHAIN_TYPE, "nat"))
	r.add(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND|unix.NLM_F_ACK, text(unix.NFTA_RULE_TABLE, table), text(unix.NFTA_RULE_CHAIN, chain),
		nested(unix.NFTA_RULE_EXPRESSIONS, expressions...))
}

// dnat sends what is for an address to another, and another port unless that is 0.
func (r *rules) dnat(hook int32, from netip.Addr, to netip.AddrPort) {
	offset := int32(16)
	if from.Is6() {
		offset = 24
	}
	nat := []*nl.RtAttr{number(unix.NFTA_NAT_TYPE, destination), number(unix.NFTA_NAT_FAMILY, int32(r.family)), number(unix.NFTA_NAT_REG_ADDR_MIN, unix.NFT_REG_1)}
	if to.Port() != 0 {
		nat = append(nat, number(unix.NFTA_NAT_REG_PROTO_MIN, unix.NFT_REG_2))
	}
	r.rule(hook, -100,
		expression("payload", number(unix.NFTA_PAYLOAD_DREG, unix.NFT_REG_1), number(unix.NFTA_PAYLOAD_BASE, networkHeader),
			number(unix.NFTA_PAYLOAD_OFFSET, offset), number(unix.NFTA_PAYLOAD_LEN, int32(from.BitLen()/8))),
		expression("cmp", number(unix.NFTA_CMP_SREG, unix.NFT_REG_1), number(unix.NFTA_CMP_OP, equal), value(unix.NFTA_CMP_DATA, from.AsSlice())),
		expression("immediate", number(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_1), value(unix.NFTA_IMMEDIATE_DATA, to.Addr().AsSlice())),
		expression("immediate", number(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_2), value(unix.NFTA_IMMEDIATE_DATA, nl.BEUint16Attr(to.Port()))),
		expression("nat", nat...))
}

// masquerade gives what leaves the router's address.
func (r *rules) masquerade() { r.rule(postrouting, 100, expression("masq")) }

// apply gives the rules to the namespace of a site.
func (r *rules) apply(t testing.TB, s *site) {
	t.Helper()
	all := rules{}
	all.add(batchBegin, 0)
	all.raw = append(all.raw, r.raw...)
	all.add(batchEnd, 0)
	var refused error
	s.in(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Sendto(fd, all.raw, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return err
		}
		answer := make([]byte, 8192)
		if _, _, err := unix.Recvfrom(fd, answer, 0); err != nil {
			return err
		}
		if errno := binary.NativeEndian.Uint32(answer[unix.SizeofNlMsghdr:]); errno != 0 {
			refused = unix.Errno(-int32(errno))
		}
		return nil
	})
	testkit.Needs(t, "NAT by nf_tables", refused, unix.EOPNOTSUPP, unix.ENOENT, unix.EAFNOSUPPORT)
}
