package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/net/dns/dnsmessage"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/clientcmd"
)

// dnsCommand answers the names of Services, which is what the tests need of a cluster's DNS. The
// usual server for it takes as long to build as the rest of the cluster.
func dnsCommand() *cobra.Command {
	var kubeconfig, listen string
	cmd := &cobra.Command{Use: "dns", SilenceUsage: true, RunE: func(cmd *cobra.Command, _ []string) error {
		return serveDNS(cmd.Context(), kubeconfig, listen)
	}}
	cmd.Flags().StringVar(&kubeconfig, "kubeconfig", "", "how to reach the API server")
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:53", "UDP address")
	return cmd
}

type names struct {
	services corelisters.ServiceLister
	slices   discoverylisters.EndpointSliceLister
}

func serveDNS(ctx context.Context, kubeconfig, listen string) error {
	if ctx == nil {
		ctx = context.Background()
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	n := names{factory.Core().V1().Services().Lister(), factory.Discovery().V1().EndpointSlices().Lister()}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())

	conn, err := net.ListenPacket("udp", listen)
	if err != nil {
		return err
	}
	defer conn.Close()
	packet := make([]byte, 4096)
	for {
		size, from, err := conn.ReadFrom(packet)
		if err != nil {
			return fmt.Errorf("read a question: %w", err)
		}
		if answer, err := n.answer(packet[:size]); err == nil {
			_, _ = conn.WriteTo(answer, from) // who gets no answer asks again
		}
	}
}

func (n names) answer(question []byte) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(question); err != nil || m.Response || len(m.Questions) != 1 {
		return nil, fmt.Errorf("not one question: %w", err)
	}
	q := m.Questions[0]
	m.Response, m.Authoritative, m.RecursionAvailable = true, true, true
	m.Answers, m.Authorities, m.Additionals = nil, nil, nil
	addresses, found := n.lookup(q.Name.String())
	if !found {
		m.RCode = dnsmessage.RCodeNameError
	}
	if q.Type == dnsmessage.TypeA { // to all other types a name that is there has no answer
		for _, address := range addresses {
			m.Answers = append(m.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 5},
				Body:   &dnsmessage.AResource{A: address.As4()},
			})
		}
	}
	return m.Pack()
}

// lookup finds <service>.<namespace>.svc.cluster.local: the cluster's address of a Service, or the
// addresses of a headless one's ready pods.
func (n names) lookup(name string) ([]netip.Addr, bool) {
	rest, ok := strings.CutSuffix(strings.ToLower(name), ".svc.cluster.local.")
	if !ok {
		return nil, false
	}
	service, namespace, ok := strings.Cut(rest, ".")
	if !ok {
		return nil, false
	}
	s, err := n.services.Services(namespace).Get(service)
	if err != nil {
		return nil, false
	}
	if address, err := netip.ParseAddr(s.Spec.ClusterIP); err == nil {
		return []netip.Addr{address}, address.Is4()
	}
	var addresses []netip.Addr
	all, _ := n.slices.EndpointSlices(namespace).List(labels.SelectorFromSet(labels.Set{discovery.LabelServiceName: service}))
	for _, slice := range all {
		for _, endpoint := range slice.Endpoints {
			if endpoint.Conditions.Ready != nil && !*endpoint.Conditions.Ready {
				continue
			}
			for _, text := range endpoint.Addresses {
				if address, err := netip.ParseAddr(text); err == nil && address.Is4() {
					addresses = append(addresses, address)
				}
			}
		}
	}
	return addresses, true
}
