// Samples how long OpenSSL takes for AES-256-XTS, in place and on one CPU:
//
//	sample CPU
//
// First it writes a line with its version, and one with the last 16 bytes of
// zeros that it encrypted, for sectors of 512 and of 4096 bytes each: so the
// other side can see that both do the same. Then it takes a sample for each line
//
//	encrypt|decrypt SECTOR-SIZE BYTES PASSES
//
// and writes how many nanoseconds it took to go through so many bytes so often.

#define _GNU_SOURCE
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

// The most that is encrypted at a time.
#define SIZE (1 << 20)

// Every sample begins after so many nanoseconds of the same work.
#define SETTLING 100000

static void must(int ok, const char *what) {
	if (!ok) {
		fprintf(stderr, "sample: %s failed\n", what);
		exit(1);
	}
}

static uint64_t now(void) {
	struct timespec t;
	must(clock_gettime(CLOCK_MONOTONIC, &t) == 0, "clock_gettime");
	return (uint64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void pin(int cpu) {
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	must(sched_setaffinity(0, sizeof set, &set) == 0, "sched_setaffinity");
}

// The key is the bytes from 0 to 63.
static EVP_CIPHER_CTX *keyed(int encrypt) {
	unsigned char key[64];
	for (int i = 0; i < 64; i++)
		key[i] = i;
	EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
	must(ctx && EVP_CipherInit_ex(ctx, EVP_aes_256_xts(), NULL, key, NULL, encrypt), "EVP_CipherInit_ex");
	return ctx;
}

// The tweak is the number of the sector in units of 512 bytes.
static void tweak(unsigned char iv[16], size_t at) {
	memset(iv, 0, 16);
	uint64_t n = at / 512;
	memcpy(iv, &n, sizeof n); // little-endian, like all CPUs of interest
}

static void encrypt(EVP_CIPHER_CTX *ctx, unsigned char *p, size_t sector, size_t bytes) {
	unsigned char iv[16];
	int n;
	for (size_t at = 0; at < bytes; at += sector) {
		tweak(iv, at);
		must(EVP_EncryptInit_ex(ctx, NULL, NULL, NULL, iv), "EVP_EncryptInit_ex");
		must(EVP_EncryptUpdate(ctx, p + at, &n, p + at, sector), "EVP_EncryptUpdate");
	}
}

static void decrypt(EVP_CIPHER_CTX *ctx, unsigned char *p, size_t sector, size_t bytes) {
	unsigned char iv[16];
	int n;
	for (size_t at = 0; at < bytes; at += sector) {
		tweak(iv, at);
		must(EVP_DecryptInit_ex(ctx, NULL, NULL, NULL, iv), "EVP_DecryptInit_ex");
		must(EVP_DecryptUpdate(ctx, p + at, &n, p + at, sector), "EVP_DecryptUpdate");
	}
}

typedef void operation(EVP_CIPHER_CTX *, unsigned char *, size_t, size_t);

static uint64_t sample(operation *op, EVP_CIPHER_CTX *ctx, unsigned char *p, size_t sector, size_t bytes, int passes) {
	uint64_t begin = now();
	do
		op(ctx, p, sector, bytes);
	while (now() - begin < SETTLING);
	begin = now();
	for (int i = 0; i < passes; i++)
		op(ctx, p, sector, bytes);
	return now() - begin;
}

static void introduce(EVP_CIPHER_CTX *encrypting, unsigned char *p) {
	printf("%s\n", OpenSSL_version(OPENSSL_VERSION));
	for (size_t sector = 512; sector <= 4096; sector *= 8) {
		memset(p, 0, SIZE);
		encrypt(encrypting, p, sector, SIZE);
		for (int i = 16; i > 0; i--)
			printf("%02x", p[SIZE - i]);
	}
	printf("\n");
	fflush(stdout);
}

int main(int argc, char **argv) {
	must(argc == 2, "reading the command line");
	pin(atoi(argv[1]));
	unsigned char *p = aligned_alloc(4096, SIZE);
	must(p != NULL, "aligned_alloc");
	EVP_CIPHER_CTX *encrypting = keyed(1), *decrypting = keyed(0);
	introduce(encrypting, p);
	char op[8];
	size_t sector, bytes;
	int passes;
	while (scanf("%7s %zu %zu %d", op, &sector, &bytes, &passes) == 4) {
		must(bytes <= SIZE && sector > 0 && bytes % sector == 0, "understanding a request");
		uint64_t took = strcmp(op, "encrypt") == 0
			? sample(encrypt, encrypting, p, sector, bytes, passes)
			: sample(decrypt, decrypting, p, sector, bytes, passes);
		printf("%llu\n", (unsigned long long)took);
		fflush(stdout);
	}
	return 0;
}
