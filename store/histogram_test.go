package store

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// TestHistograms: they say what a prometheus.Histogram does, on every bound, below the first and above the last.
func TestHistograms(t *testing.T) {
	t.Parallel()
	bounds := []float64{0, 0.1, 1, 5}
	random := rand.New(rand.NewPCG(1, 2))
	want := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "lag", Help: "h", Buckets: bounds})
	h := newHistograms("lag", "h", "route", bounds)
	h.at(2, "third") // has none yet, and is not collected
	for i := range 1000 {
		v := -1 + 8*random.Float64()
		if i%5 == 0 {
			v = bounds[i/5%len(bounds)]
		}
		want.Observe(v)
		h.at(1, "second").observe(bounds, v)
	}
	got, expected := collect(t, h), collect(t, want)
	if len(got) != 1 {
		t.Fatalf("%d series, want 1", len(got))
	}
	if g, w := got[0], expected[0]; g.GetSampleCount() != w.GetSampleCount() || math.Abs(g.GetSampleSum()-w.GetSampleSum()) > 1e-6 {
		t.Errorf("%d with a sum of %g, want %d and %g", g.GetSampleCount(), g.GetSampleSum(), w.GetSampleCount(), w.GetSampleSum())
	}
	for i, bucket := range expected[0].GetBucket() {
		if b := got[0].GetBucket()[i]; b.GetUpperBound() != bucket.GetUpperBound() || b.GetCumulativeCount() != bucket.GetCumulativeCount() {
			t.Errorf("bucket %d: %v, want %v", i, b, bucket)
		}
	}
}

// TestHistogramFromTheStart: the one without a label is there before anything is observed.
func TestHistogramFromTheStart(t *testing.T) {
	t.Parallel()
	got := collect(t, newHistogram("latency", "h", []float64{1, 2}))
	if len(got) != 1 || got[0].GetSampleCount() != 0 || len(got[0].GetBucket()) != 2 {
		t.Errorf("%v, want one without observations", got)
	}
}

func collect(t *testing.T, c prometheus.Collector) []*dto.Histogram {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(c); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var all []*dto.Histogram
	for _, f := range families {
		for _, m := range f.GetMetric() {
			all = append(all, m.GetHistogram())
		}
	}
	return all
}
