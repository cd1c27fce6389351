/* ThreadSanitizer does not see into the std of a stable toolchain, which comes compiled without it. What
 * is generic there is compiled, and seen, with us: taking a free lock, and giving one back. These few are
 * not: waiting for a lock, waiting for a condition, the first run of a Once, the end of a scope's thread.
 * The linker puts the functions below around them (--wrap); each tells ThreadSanitizer of the order that
 * the original makes. The names are given by sanitize.sh. */
#include <stdbool.h>
#include <stdint.h>

void __tsan_acquire(void *);
void __tsan_release(void *);

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define REAL(name) JOIN(__real_, name)
#define WRAP(name) JOIN(__wrap_, name)

#define CONTENDED(name)          \
    void REAL(name)(void *lock); \
    void WRAP(name)(void *lock)  \
    {                            \
        REAL(name)(lock);        \
        __tsan_acquire(lock);    \
    }

CONTENDED(LOCK_CONTENDED)
CONTENDED(READ_CONTENDED)
CONTENDED(WRITE_CONTENDED)

void REAL(WAIT)(void *condvar, void *mutex);
void WRAP(WAIT)(void *condvar, void *mutex)
{
    __tsan_release(mutex);
    REAL(WAIT)(condvar, mutex);
    __tsan_acquire(mutex);
}

bool REAL(WAIT_TIMEOUT)(void *condvar, void *mutex, uint64_t secs, uint32_t nanos);
bool WRAP(WAIT_TIMEOUT)(void *condvar, void *mutex, uint64_t secs, uint32_t nanos)
{
    __tsan_release(mutex);
    bool told = REAL(WAIT_TIMEOUT)(condvar, mutex, secs, nanos);
    __tsan_acquire(mutex);
    return told;
}

void REAL(ONCE_CALL)(void *once, uintptr_t a, uintptr_t b, uintptr_t c, uintptr_t d);
void WRAP(ONCE_CALL)(void *once, uintptr_t a, uintptr_t b, uintptr_t c, uintptr_t d)
{
    REAL(ONCE_CALL)(once, a, b, c, d);
    __tsan_acquire(once);
    __tsan_release(once);
}

/* Three words, in an order that the compiler chose; the scope waits for one of them. */
void REAL(SCOPE_END)(void **scope, bool panicked);
void WRAP(SCOPE_END)(void **scope, bool panicked)
{
    for (int word = 0; word < 3; word++)
        __tsan_release(&scope[word]);
    REAL(SCOPE_END)(scope, panicked);
}
