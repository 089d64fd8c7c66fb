#!/bin/sh
# Checks that the assembly is what its generator writes.
set -eu
cd "$(dirname "$0")/.."

files="blockcrypt/kernels_amd64.s blockcrypt/assembly_amd64.go internal/ceiling/loops_amd64.s internal/ceiling/assembly_amd64.go"
before=$(cat $files | sha256sum)
go generate ./blockcrypt ./internal/ceiling
if [ "$before" != "$(cat $files | sha256sum)" ]; then
    echo "The assembly was not what blockcrypt/generate writes. It is now: look at it, test it, and commit it." >&2
    exit 1
fi
