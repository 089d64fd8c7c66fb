# vmcrypt: virtual machine disk encryption for KVM hosts.
#
#   make build   build bin/vmcrypt, one static binary
#   make deb rpm     dist/vmcrypt_VERSION_ARCH.deb and .rpm (GOARCH=arm64 for that): docs/install.md
#   make demo    encrypt a real disk image, look inside it, get it back: with proof
#   make test    the whole suite, long tests and race detector included (about 20 min)
#   make crash   crashes of conversions in place: a million states, faults, seeded mistakes
#   make crash-full  the same with a hundred million states (an hour or two): docs/conversion.md
#   make lint    static checks, as CI runs them
#   make generate    write the assembly of the AES-XTS kernels anew
#   make fuzz    every fuzz target for FUZZTIME each (2m; one package: PKG=./vmx)
#   make bench   compare with other programs: docs/performance.md (one part: SECTION=files)
#
# Go and git are all that building needs. "demo" and "test" install the Debian
# packages they compare vmcrypt with; "go test ./..." needs none of them, and
# skips those comparisons.

export PATH := $(PATH):/usr/local/go/bin
export CGO_ENABLED := 0
# Erases the copies of keys that libraries leave behind: see internal/secret.
export GOEXPERIMENT := runtimesecret

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
PKG := ./...
FUZZTIME := 2m

# Packages with goroutines of their own, or that hand memory to the kernel.
RACE := ./agent/... ./blockcrypt ./image ./internal/audit ./internal/kmipwire ./internal/measure ./internal/secret ./kek ./kms ./nbd

.PHONY: help build deb rpm demo test crash crash-full lint generate fuzz bench bench-nbd

help:
	@sed -n '/^[^#]/q; s/^# \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

build:
	go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$(VERSION)" -o bin/vmcrypt ./cmd/vmcrypt

deb rpm: bin/nfpm
	scripts/package.sh $@

# The tools run here, whatever the packages are for.
bin/nfpm: tools/nfpm/go.mod tools/nfpm/go.sum
	GOARCH= go -C tools/nfpm build -buildvcs=false -o ../../$@ github.com/goreleaser/nfpm/v2/cmd/nfpm

demo:
	scripts/setup.sh ca-certificates qemu-utils grub-rescue-pc
	$(MAKE) --no-print-directory build
	scripts/demo.sh

# A cached result would not have met the tools that setup.sh just installed.
test: export VMCRYPT_TEST_REQUIRE_TOOLS := 1
test:
	scripts/setup.sh
	[ "$$(go env GOARCH)" != amd64 ] || scripts/guest.sh >/dev/null
	go vet ./...
	CGO_ENABLED=1 go test -race -count=1 -timeout=15m $(RACE)
	CGO_ENABLED=1 go test -race -count=1 -timeout=15m -run 'Scenarios|AtOnce|Unserved|Interrupted|OneDisk' ./blockcrypt/conversion ./cmd/vmcrypt
	go test -count=1 -tags purego ./blockcrypt
	[ "$$(go env GOARCH)" != amd64 ] || GOARCH=arm64 go test -count=1 -exec qemu-aarch64-static -timeout=15m ./blockcrypt
	[ "$$(go env GOARCH)" != amd64 ] || scripts/avx512.sh
	VMCRYPT_TEST_LONG=1 go test -count=1 -timeout=20m ./...
	VMCRYPT_CRASH=long go test -count=1 -timeout=20m -v -run $(CRASH) ./blockcrypt/conversion

# The tests that do more the more VMCRYPT_CRASH asks for.
CRASH := '^Test(Crash|Faults|Flips)$$'

crash:
	VMCRYPT_CRASH=long go test -count=1 -timeout=20m -v -run $(CRASH) ./blockcrypt/conversion
	VMCRYPT_TEST_LONG=1 go test -count=1 -timeout=20m -v -run TestMutants ./blockcrypt/conversion

crash-full:
	VMCRYPT_CRASH=full go test -count=1 -timeout=0 -v -run $(CRASH) ./blockcrypt/conversion

lint: bin/golangci-lint
	bin/golangci-lint run ./...
	scripts/generated.sh

generate:
	go generate ./blockcrypt ./internal/ceiling

bin/golangci-lint: tools/go.mod tools/go.sum
	go -C tools build -buildvcs=false -o ../$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

fuzz:
	scripts/fuzz.sh $(FUZZTIME) $(PKG)

# cryptsetup is in /usr/sbin, which a user's PATH often lacks.
bench: export PATH := $(PATH):/usr/sbin
bench: build
	scripts/setup.sh cryptsetup-bin gcc libc6-dev libssl-dev qemu-utils
	go run ./internal/performance $(SECTION)

bench-nbd: build
	scripts/setup.sh fio nbdkit qemu-utils util-linux
	go run ./internal/performance nbd
