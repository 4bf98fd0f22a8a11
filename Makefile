# The default target lists the others.
.DEFAULT_GOAL := help
SHELL := bash

# Tools are installed here, in the versions that are named here.
TOOLS := $(CURDIR)/.cache/bin
GOLANGCI_LINT_VERSION := v2.15.0
GOLANGCI_LINT := $(TOOLS)/golangci-lint-$(GOLANGCI_LINT_VERSION)
GOTESTSUM_VERSION := v1.13.0
GOTESTSUM := $(TOOLS)/gotestsum-$(GOTESTSUM_VERSION)
GOVULNCHECK_VERSION := v1.9.0
GOVULNCHECK := $(TOOLS)/govulncheck-$(GOVULNCHECK_VERSION)
GO_LICENSES_VERSION := v1.6.0
GO_LICENSES := $(TOOLS)/go-licenses-$(GO_LICENSES_VERSION)

# Every module of the repository; go.work joins them.
PACKAGES := ./... ./examples/... ./test/... ./benchmarks/...

.PHONY: help
help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: services
services: ## Start the servers that the tests need and that do not run
	@services/services up

.PHONY: services-down
services-down: ## Stop those that were started from here
	@services/services down

.PHONY: test
test: services $(GOTESTSUM) ## Run all tests, with the race detector
	go vet $(PACKAGES)
	go vet -tags stress ./test/brokers
	go test -race -timeout 30m ./...
	go test -race -count=1 ./examples/... ./benchmarks/... # the former build programs, whose changes the cache of tests does not see
	@rm -f .cache/race.* # gotestsum shows no race that was found while a test ran that has passed
	GORACE=log_path=$(CURDIR)/.cache/race $(GOTESTSUM) --format testname -- -race -p 1 -parallel 4 -count=1 -timeout 30m \
		$$(go list ./test/... | grep -v /torture) || { cat .cache/race.* 2>/dev/null; exit 1; }
	$(GOTESTSUM) --format testname -- -count=1 -timeout 30m ./test/torture/... # with the machine to itself
	$(GOTESTSUM) --format testname -- -parallel 4 -count=1 -timeout 30m -run '(TestBrokers|TestUniversal)/RabbitMQ' ./test/brokers # see rabbitmq_test.go

.PHONY: test-short
test-short: services ## Run all tests but the long ones, without the race detector
	go test -short -count=1 -p 3 -parallel 6 $(PACKAGES) # most of the time they wait, for leases and brokers

.PHONY: stress
stress: services ## Run the tests of root and of the stores fifty times over
	go test -race -count=50 -short -timeout=60m . ./store/...
	OUTBOX_TORTURE_SECONDS=5 go test -race -count=50 -timeout=60m -run '^TestRelays_LoseNothing.*/^killed$$' ./store/pgxstore # which -short leaves out
	go test -race -count=50 -timeout=60m -run '^TestStore_KeepsTheContractOfStores$$/^15$$/^pgx$$' ./store/postgres # as well

.PHONY: stress-brokers
stress-brokers: services ## Run Watermill's suite STRESS_TEST_COUNT (10) times at once on each broker
	go test -count=1 -tags stress -timeout 4h -run TestStress ./test/brokers

.PHONY: torture
torture: services ## Do harm to everything for DURATION (10m), drawn from SEED, and check what is promised
	@mkdir -p .cache
	@rm -f .cache/torture
	go test -v -count=1 -timeout 24h ./test/torture -duration $(or $(DURATION),10m) -seed $(or $(SEED),0) -results $(CURDIR)/.cache/torture; \
	code=$$?; cat .cache/torture; exit $$code

# Go would make each input that is new smaller for up to a minute, and try no others meanwhile.
.PHONY: fuzz
fuzz: ## Fuzz each target that there is for FUZZTIME (30s)
	@set -eo pipefail; grep -rEo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' . | sort | while IFS=: read -r file name; do \
		echo "$$file: $${name#func }"; \
		go test -run '^$$' -fuzz "^$${name#func }$$" -fuzztime $(or $(FUZZTIME),30s) -fuzzminimizetime 1s "$$(dirname "$$file")" </dev/null; \
	done

# Debezium is one of the peers. What a run has found is in RESULT, and the README's section is made of it by bench-report.
BENCH := BENCH_DEBEZIUM_JARS="$$(services/services debezium-jars)" go run ./benchmarks

.PHONY: bench
bench: services ## Measure this project and its alternatives in turns: 40 minutes
	$(BENCH) run --out $(or $(RESULT),benchmarks/results/full.json)

.PHONY: bench-quick
bench-quick: services ## The same in five minutes: what the README shows
	$(BENCH) run --quick --out $(or $(RESULT),benchmarks/results/quick.json)

.PHONY: bench-report
bench-report: ## Put a result into the README: its table and its chart
	go run ./benchmarks report $(or $(RESULT),benchmarks/results/quick.json) --readme README.md --chart docs/performance.svg

.PHONY: soak
soak: services ## Relay a steady load for DURATION (1h), and fail if anything grows
	go run ./benchmarks soak --duration $(or $(DURATION),1h)

.PHONY: bench-sqlite
bench-sqlite: services ## Compare with the same work written by hand, on SQLite and in memory, in turns
	go test -run '^$$' -bench 'Dispatch|Drain_OverSQLite_Against' -benchtime 10x .
	go test -run '^$$' -bench 'Publish|Deduplicator' -benchtime 200x .
	go test -run '^$$' -bench OfAMillion -benchtime 3x .

# Once each where preparing takes most of the time, and where what has been drained before would make a difference. It
# takes a few GB of disk.
BENCH_POSTGRES := go test -run '^$$' -timeout 30m ./store/pgxstore

.PHONY: bench-postgres
bench-postgres: services ## Compare on PostgreSQL, and measure latencies: ten minutes or more
	$(BENCH_POSTGRES) -benchtime 5x -bench 'Drain_AgainstClaimingByUpdate|WAL|Publish|Instances'
	$(BENCH_POSTGRES) -benchtime 1x -bench Drain_OfFiveMillion
	$(BENCH_POSTGRES) -benchtime 3x -bench 'Drain_WhileATransactionIsHeld|Drain_BesideATenMillionRowArchive|Latency_AtFiveHundred'
	$(BENCH_POSTGRES) -benchtime 2x -bench Latency_WhileAHundredWritersAreHeld
	$(BENCH_POSTGRES) -benchtime 10x -bench Latency_OfTheFirstMessageAfterSilence

.PHONY: bench-brokers
bench-brokers: services ## Compare with publishing to Kafka directly, and measure each broker by concurrency
	go test -run '^$$' -timeout 30m -benchtime 5x -bench Kafka ./test/brokers
	go test -run '^$$' -timeout 30m -benchtime 1x -bench Brokers ./test/brokers

.PHONY: quickstart
quickstart: ## Run the example that shows everything
	go run ./examples/quickstart

.PHONY: lint
lint: $(GOLANGCI_LINT) ## Check style, layers and common mistakes
	$(GOLANGCI_LINT) run ./...
	cd examples && $(GOLANGCI_LINT) run --config ../.golangci.yml ./...
	cd test && $(GOLANGCI_LINT) run --config ../.golangci.yml ./...
	cd benchmarks && $(GOLANGCI_LINT) run --config ../.golangci.yml ./...

.PHONY: fmt
fmt: $(GOLANGCI_LINT) ## Format all code
	$(GOLANGCI_LINT) fmt ./...
	cd examples && $(GOLANGCI_LINT) fmt --config ../.golangci.yml ./...
	cd test && $(GOLANGCI_LINT) fmt --config ../.golangci.yml ./...
	cd benchmarks && $(GOLANGCI_LINT) fmt --config ../.golangci.yml ./...

.PHONY: vuln
vuln: $(GOVULNCHECK) ## Look for known vulnerabilities in what all modules call
	@.ci/vuln $(GOVULNCHECK)

.PHONY: licences
licences: $(GO_LICENSES) ## Check the licences of what all modules import
	@.ci/licences $(GO_LICENSES)

$(GOLANGCI_LINT):
	@mkdir -p $(TOOLS)
	GOWORK=off GOBIN=$(TOOLS) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION)
	mv $(TOOLS)/golangci-lint $@

$(GOTESTSUM):
	@mkdir -p $(TOOLS)
	GOWORK=off GOBIN=$(TOOLS) go install gotest.tools/gotestsum@$(GOTESTSUM_VERSION)
	mv $(TOOLS)/gotestsum $@

$(GOVULNCHECK):
	@mkdir -p $(TOOLS)
	GOWORK=off GOBIN=$(TOOLS) go install golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK_VERSION)
	mv $(TOOLS)/govulncheck $@

$(GO_LICENSES):
	@mkdir -p $(TOOLS)
	GOWORK=off GOBIN=$(TOOLS) go install github.com/google/go-licenses@$(GO_LICENSES_VERSION)
	mv $(TOOLS)/go-licenses $@
