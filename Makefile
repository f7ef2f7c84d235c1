# Everything a person or a build machine does with this project. `make help` lists it.

# Tools, pinned here and nowhere else. (Go itself is pinned in go.mod.)
GOLANGCI_VERSION := v2.15.0
PERF_VERSION     := v0.0.0-20260908200009-22c9c6c9d4da
# The newest that Go 1.26 builds.
KUSTOMIZE_VERSION   := v5.8.2
KUBECONFORM_VERSION := v0.8.0
CYCLONEDX_VERSION   := v1.10.0
# Whose schemas the manifests are held against. Kubernetes itself is pinned in
# integration/setup/kubernetes/hyperkube/go.mod.
PROMETHEUS_OPERATOR_VERSION := v0.85.0
CERT_MANAGER_VERSION        := v1.21.2

MODULE  := github.com/mqttpg/bridge
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT  ?= $(shell git rev-parse --short HEAD 2>/dev/null || echo unknown)
IMAGE   ?= bridge:$(VERSION)
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)

CACHE     := $(CURDIR)/.cache
GOLANGCI  := $(CACHE)/bin/golangci-lint-$(GOLANGCI_VERSION)
BENCHSTAT := $(CACHE)/bin/benchstat-$(PERF_VERSION)
COVER_DIR := $(CACHE)/cover
KUSTOMIZE := $(CACHE)/bin/kustomize-$(KUSTOMIZE_VERSION)
KUBECONFORM := $(CACHE)/bin/kubeconform-$(KUBECONFORM_VERSION)
CYCLONEDX := $(CACHE)/bin/cyclonedx-gomod-$(CYCLONEDX_VERSION)
KUBERNETES_VERSION := $(shell sed -nE 's,^\tk8s.io/kubernetes (v.*),\1,p' integration/setup/kubernetes/hyperkube/go.mod)
SCHEMAS   := $(CACHE)/schemas-$(KUBERNETES_VERSION)-$(PROMETHEUS_OPERATOR_VERSION)-$(CERT_MANAGER_VERSION)
MANIFESTS := $(CACHE)/manifests

# The scenarios need a broker and a database; everything else is a unit test.
SCENARIOS := ./integration ./integration/provider ./integration/deploy ./integration/faults
UNITS     = $(shell go list ./... | grep -vE '/integration(/provider|/image|/deploy|/faults|/bench)?$$')

# The scenarios that a build machine runs a second time, on processes instead of containers.
CORE ?= ^Test(MainJob|BrokerRestartMidStream|DatabaseRestartMidStream|BridgeKilledMidStream|TwoBridgesShare|GracefulStop)$$

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test setup vet lint test-unit test-allocations test-integration manifests validate test-k8s test-cluster test-image sbom faults cover bench bench-peers bench-ledger bench-micro benchstat build image fmt clean

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## broker, database, bridge and devices on this machine (DEMO_SECONDS=20 ends by itself)
	@# Not go run, which ends with 1 after Ctrl-C whatever the demonstration says.
	go build -o $(CACHE)/bin/demo ./cmd/demo
	$(CACHE)/bin/demo

test: setup vet lint test-unit test-allocations test-integration test-image test-cluster cover ## everything: linters, all tests, coverage

setup: ## find or install what the tests need
	bash integration/setup/prepare.sh

vet:
	go vet -tags docker,kubernetes ./...

lint: $(GOLANGCI) ## run the linters
	$(GOLANGCI) run

test-unit: ## unit tests and fuzz seeds with the race detector
	rm -rf $(COVER_DIR)/unit && mkdir -p $(COVER_DIR)/unit
	go test -race -cover -covermode=atomic -timeout 15m $(UNITS) -args -test.gocoverdir=$(COVER_DIR)/unit

test-allocations: ## no micro-benchmark allocates more than it may (UPDATE=1 writes down what they do)
	bash integration/setup/microbench.sh allocations

test-integration: ## the bridge between a real broker and a real database
	rm -rf $(COVER_DIR)/integration && mkdir -p $(COVER_DIR)/integration
	BRIDGE_TEST_COVERDIR=$(COVER_DIR)/integration go test -race -count=1 -p 1 -timeout 20m $(SCENARIOS)
	go test -count=1 -timeout 10m ./integration/bench # what it measures would be the race detector
	@# A build machine has an engine, so the run above took containers. People have one or the other.
	if [ "$${CI:-}" = true ]; then \
	  export BRIDGE_TEST_PROVIDER=processes BRIDGE_TEST_COVERDIR=$(COVER_DIR)/integration; \
	  go test -race -count=1 -parallel 4 -timeout 20m -run '$(CORE)' ./integration; \
	  go test -race -count=1 -timeout 10m ./integration/provider; \
	fi

manifests: $(KUSTOMIZE) $(KUBECONFORM) $(SCHEMAS) ## build every overlay of deploy/k8s and validate it offline, into .cache/manifests
	rm -rf $(MANIFESTS) && mkdir -p $(MANIFESTS)
	for folder in deploy/k8s/base deploy/k8s/overlays/* integration/deploy/testdata/everything; do \
	  $(KUSTOMIZE) build $$folder -o $(MANIFESTS)/$$(basename $$folder).yaml; \
	done
	$(MAKE) --no-print-directory validate FILES=$(MANIFESTS)

validate: $(KUBECONFORM) $(SCHEMAS)
	$(KUBECONFORM) -strict -summary -schema-location '$(SCHEMAS)/{{ .ResourceKind }}{{ .KindSuffix }}.json' $(FILES)

test-cluster: # as a part of `make test`: a person's cluster is touched only when test-k8s is asked for
	if [ "$${CI:-}" = true ]; then env -u KUBECONFIG $(MAKE) --no-print-directory test-k8s; else echo 'make test-k8s tries Kubernetes'; fi

test-k8s: ## the life of a release on a real cluster (of KUBECONFIG, or one of its own), its table into docs/kubernetes-scenarios.md
	$(if $(filter true,$(CI)),,K8S_DOC=$(CURDIR)/docs/kubernetes-scenarios.md) \
	  go test -tags kubernetes -count=1 -timeout 30m -v ./integration/k8s

test-image: ## build the container image and look into it (where a Docker engine answers)
	if [ "$${CI:-}" = true ] || timeout 10 docker version >/dev/null 2>&1; then \
	  go test -tags docker -count=1 -timeout 15m ./integration/image; \
	else \
	  echo 'no Docker engine answers: the image is not tested'; \
	fi

faults: ## the fault matrix, its table into docs/faults.md (FAULTS_MINUTES=30, FAULTS_SEED to play a run again)
	FAULTS_MINUTES=$${FAULTS_MINUTES:-30} FAULTS_DOC=$(CURDIR)/docs/faults.md \
	  go test -count=1 -timeout 0 -v -run '^TestFaults$$' ./integration/faults
	FAULTS_MINUTES=1 go test -count=1 -timeout 15m -v -run '^(TestCutOffBridge|TestSilentBrokerMovesNoSession)$$' ./integration

cover: ## hold the coverage of the last test runs against what is asked
	bash integration/setup/coverage.sh $(COVER_DIR)

bench: ## measure everything, into docs/performance.md (BENCH_ONLY=drain,live BENCH_ROUNDS=3 BENCH_QUICK=1)
	@# The quick form writes its page to a folder that it removes.
	$(if $(BENCH_QUICK)$(BENCH_ONLY),,$(MAKE) bench-ledger)
	$(if $(BENCH_QUICK),,BENCH_DOCS=$(CURDIR)/docs) go test -count=1 -timeout 0 -v -run '^TestBench$$' ./integration/bench

bench-peers: ## the bridge beside Telegraf and the limits of this machine, into docs/performance.md (BENCH_ROUNDS=3)
	@# Telegraf and what it needs are fetched and built for this alone.
	go -C integration/bench/peers test -count=1 ./...
	$(MAKE) bench BENCH_PEERS=1 BENCH_ONLY=drain,live,limits

bench-ledger: ## what the delivery ledger costs, into docs/performance.md
	BENCH_DOCS=$(CURDIR)/docs/performance.md go test ./store -run '^$$' -bench LedgerCost -benchtime 1x -timeout 30m

bench-micro: ## micro-benchmarks of the line, into .cache/bench/new.txt (COUNT=6 BENCH=REGEXP)
	bash integration/setup/microbench.sh run

benchstat: $(BENCHSTAT) ## micro-benchmarks of another commit beside those of this tree (BASE=main COUNT=10 BENCH=REGEXP)
	BENCHSTAT=$(BENCHSTAT) bash integration/setup/microbench.sh compare

build: ## bin/bridge, static
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o bin/bridge ./cmd/bridge

image: ## the container image, as $(IMAGE)
	@# The classic builder does where the client has no plugin for the newer one.
	DOCKER_BUILDKIT=$$(docker buildx version >/dev/null 2>&1 && echo 1 || echo 0) \
	  docker build --build-arg VERSION='$(VERSION)' --build-arg COMMIT='$(COMMIT)' --tag '$(IMAGE)' .

sbom: build $(CYCLONEDX) ## what bin/bridge is made of, as bin/bridge.cdx.json (CycloneDX)
	@# Read from the binary itself: what is listed is what was linked.
	$(CYCLONEDX) bin -json -std -version '$(VERSION)' -output bin/bridge.cdx.json bin/bridge

fmt: $(GOLANGCI) ## format the code
	$(GOLANGCI) fmt

clean: ## remove what was built and cached here
	@# A cluster or an engine that is left running keeps its state there.
	for what in kubernetes docker; do bash integration/setup/$$what.sh down; done
	rm -rf bin .cache coverage*.out

$(GOLANGCI):
	mkdir -p $(@D)
	if [ "v$$(golangci-lint version --short 2>/dev/null)" = $(GOLANGCI_VERSION) ]; then \
	  ln -sf "$$(type -P golangci-lint)" $@; \
	else \
	  GOBIN=$(@D) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION) && mv $(@D)/golangci-lint $@; \
	fi

$(KUSTOMIZE):
	mkdir -p $(@D)
	GOBIN=$(@D) go install sigs.k8s.io/kustomize/kustomize/v5@$(KUSTOMIZE_VERSION) && mv $(@D)/kustomize $@

$(KUBECONFORM):
	mkdir -p $(@D)
	GOBIN=$(@D) go install github.com/yannh/kubeconform/cmd/kubeconform@$(KUBECONFORM_VERSION) && mv $(@D)/kubeconform $@

$(CYCLONEDX):
	mkdir -p $(@D)
	GOBIN=$(@D) go install github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@$(CYCLONEDX_VERSION) && mv $(@D)/cyclonedx-gomod $@

# A module's folder, fetched through the module proxy and nothing else.
module = $(shell go mod download -json $(1) | sed -nE 's/^\t"Dir": "(.*)",$$/\1/p')

$(SCHEMAS):
	rm -rf $@.new
	go run ./integration/setup/schemas $@.new $(call module,k8s.io/kubernetes@$(KUBERNETES_VERSION))/api/openapi-spec/swagger.json \
	  $(call module,github.com/prometheus-operator/prometheus-operator@$(PROMETHEUS_OPERATOR_VERSION))/example/prometheus-operator-crd/*{podmonitors,prometheusrules}.yaml \
	  $(call module,github.com/cert-manager/cert-manager@$(CERT_MANAGER_VERSION))/deploy/crds/cert-manager.io_certificates.yaml
	mv $@.new $@

$(BENCHSTAT):
	mkdir -p $(@D)
	GOBIN=$(@D) go install golang.org/x/perf/cmd/benchstat@$(PERF_VERSION) && mv $(@D)/benchstat $@
