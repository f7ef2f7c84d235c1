package store

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// histogram counts like a [prometheus.Histogram], but for many observations at a time: that one asks for three
// atomic operations and its own memory for each. Not safe for concurrent use.
type histogram struct {
	counts []uint64 // by bucket, the last one without a bound; nil: nothing was observed yet
	sum    float64
}

// observe adds a value; every histogram of a family has the same bounds.
func (h *histogram) observe(bounds []float64, v float64) {
	if h.counts == nil {
		h.counts = make([]uint64, len(bounds)+1)
	}
	i := 0
	for i < len(bounds) && v > bounds[i] {
		i++
	}
	h.counts[i]++
	h.sum += v
}

// histograms are those of one metric. It is a [prometheus.Collector], and safe for concurrent use.
type histograms struct {
	desc   *prometheus.Desc
	bounds []float64

	mu     sync.Mutex
	of     []histogram // by the number of the label
	labels []string    // empty: that histogram is none yet, or the metric has no label
}

// newHistogram returns the one of a metric without a label. It is collected from the start: a rate does not see the
// first observations of a series that begins with them.
func newHistogram(name, help string, bounds []float64) *histograms {
	h := &histograms{desc: prometheus.NewDesc(name, help, nil, nil), bounds: bounds}
	h.at(0, "").counts = make([]uint64, len(bounds)+1)
	return h
}

// newHistograms returns those of a metric with a label, of which none is collected that has no observations.
func newHistograms(name, help, label string, bounds []float64) *histograms {
	return &histograms{desc: prometheus.NewDesc(name, help, []string{label}, nil), bounds: bounds}
}

// at returns the histogram of the number given, with mu held.
func (h *histograms) at(number int, label string) *histogram {
	for len(h.of) <= number {
		h.of, h.labels = append(h.of, histogram{}), append(h.labels, "")
	}
	h.labels[number] = label
	return &h.of[number]
}

// Describe implements [prometheus.Collector].
func (h *histograms) Describe(ch chan<- *prometheus.Desc) { ch <- h.desc }

// Collect implements [prometheus.Collector].
func (h *histograms) Collect(ch chan<- prometheus.Metric) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.of {
		if h.of[i].counts == nil {
			continue
		}
		total, below := uint64(0), make(map[float64]uint64, len(h.bounds))
		for j, bound := range h.bounds {
			total += h.of[i].counts[j]
			below[bound] = total
		}
		total += h.of[i].counts[len(h.bounds)]
		var labels []string
		if h.labels[i] != "" {
			labels = h.labels[i : i+1]
		}
		ch <- prometheus.MustNewConstHistogram(h.desc, total, h.of[i].sum, below, labels...)
	}
}
