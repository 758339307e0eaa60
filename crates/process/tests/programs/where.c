/* Stops (int3) with one function live in a place that the argument names. */
#define _GNU_SOURCE
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))

static volatile int sink;

NOINLINE void leaf(void) { __asm__ volatile("int3" ::: "memory"); sink++; }
NOINLINE void elsewhere(void) { sink += 2; }
NOINLINE void inner(void) { leaf(); sink++; }
NOINLINE void wanted(void) { inner(); sink++; }
NOINLINE void wanted_deep(int n) { if (n) wanted_deep(n - 1); else inner(); sink++; }

NOINLINE void wanted_quiet(int n) { if (n) wanted_quiet(n - 1); else elsewhere(); sink++; }

static void handler(int sig) { (void)sig; leaf(); sink++; }
NOINLINE void wanted_interrupted(void) { raise(SIGUSR1); sink++; }
NOINLINE void wanted_faulting(void) { sink++; *(volatile int *)16 = 1; sink++; }

static void fault_handler(int sig) { (void)sig; leaf(); _exit(0); }

NOINLINE void pausing(void) { poll(0, 0, 1000000); sink++; }
NOINLINE void wanted_pausing(void) { pausing(); sink++; }

static void *thread(void *arg) { ((void (*)(void))arg)(); return 0; }

#ifdef __GLIBC__
static ucontext_t main_context, coroutine_context;
static void coroutine(void) { leaf(); swapcontext(&coroutine_context, &main_context); }
NOINLINE void wanted_suspended(void) { swapcontext(&main_context, &coroutine_context); sink++; }

/* A coroutine that gives way while wanted_elsewhere is live on its stack. */
NOINLINE void wanted_elsewhere(void) { swapcontext(&coroutine_context, &main_context); sink++; }
static void giving_way(void) { wanted_elsewhere(); }

#endif

static jmp_buf saved;
NOINLINE void wanted_saved(void) { if (setjmp(saved)) sink++; }
/* Overwrites the dead part of the stack. */
NOINLINE void wipe(void) { char buf[1 << 14]; memset(buf, 0, sizeof buf); __asm__ volatile("" :: "r"(buf) : "memory"); }
/* Keeps what was there in its frame. */
NOINLINE void keep(void) { char buf[1 << 13]; __asm__ volatile("" :: "r"(buf) : "memory"); leaf(); sink += buf[0]; }

/* Two threads' stacks in one mapping, apart by a guard page within it, as glibc lays them out from 2.42 on. */
static void on_guarded_thread(void (*f)(void)) {
    enum { SIZE = 1 << 18, PAGE = 4096, GUARD_INSTALL = 102 };
    char *m = mmap(0, 2 * SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise(m + SIZE, PAGE, GUARD_INSTALL);
    /* What the neighbour's stack would hold. */
    *(void **)(m + SIZE - 64) = (char *)wanted + 4;
    pthread_attr_t a;
    pthread_t t;
    pthread_attr_init(&a);
    pthread_attr_setstack(&a, m + SIZE + PAGE, SIZE - PAGE);
    pthread_create(&t, &a, thread, (void *)f);
    pthread_join(t, 0);
}

/* On a stack so small that musl puts the thread's TLS elsewhere; glibc wants more. */
static void on_small_thread(void (*f)(void)) {
    pthread_attr_t a;
    pthread_t t;
    pthread_attr_init(&a);
    size_t size = 1 << 13;
    char *m = mmap(0, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(m + size, 4096, PROT_NONE);
    if (pthread_attr_setstack(&a, m, size)) pthread_attr_setstack(&a, m + size + 4096, (1 << 16) - size - 4096);
    pthread_create(&t, &a, thread, (void *)f);
    pthread_join(t, 0);
}

static void on_thread(void (*f)(void)) {
    pthread_t t;
    pthread_create(&t, 0, thread, (void *)f);
    pthread_join(t, 0);
}

static void use_alternate_stack(void *memory, size_t size) {
    stack_t alternate = {.ss_sp = memory, .ss_size = size};
    sigaltstack(&alternate, 0);
    struct sigaction sa = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
    sigaction(SIGUSR1, &sa, 0);
    sa.sa_handler = fault_handler;
    sigaction(SIGSEGV, &sa, 0);
}

static void alternate_on_thread(void) {
    use_alternate_stack(malloc(1 << 16), 1 << 16);
    wanted_interrupted();
}

int main(int argc, char **argv) {
    const char *where = argc > 1 ? argv[1] : "";
    if (!strcmp(where, "plain")) wanted();
    if (!strcmp(where, "deep")) wanted_deep(20000);
    if (!strcmp(where, "not")) { elsewhere(); inner(); }
    if (!strcmp(where, "stale")) { wanted_quiet(200); keep(); }
    if (!strcmp(where, "thread")) on_thread(wanted);
    if (!strcmp(where, "thread-not")) on_thread(inner);
    if (!strcmp(where, "signal")) {
        struct sigaction sa = {.sa_handler = handler};
        sigaction(SIGUSR1, &sa, 0);
        wanted_interrupted();
    }
    if (!strcmp(where, "altstack")) {
        use_alternate_stack(mmap(0, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 1 << 16);
        wanted_interrupted();
    }
    if (!strcmp(where, "fault")) {
        use_alternate_stack(mmap(0, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 1 << 16);
        wanted_faulting();
    }
    if (!strcmp(where, "altstack-thread")) on_thread(alternate_on_thread);
    if (!strcmp(where, "altstack-guarded")) on_guarded_thread(alternate_on_thread);
    if (!strcmp(where, "altstack-small")) on_small_thread(alternate_on_thread);
    if (!strcmp(where, "guarded")) on_guarded_thread(wanted);
    if (!strcmp(where, "returns")) for (;;) { wanted_pausing(); sink++; }
#ifdef __GLIBC__
    if (!strcmp(where, "coroutine")) {
        getcontext(&coroutine_context);
        coroutine_context.uc_stack.ss_sp = mmap(0, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        coroutine_context.uc_stack.ss_size = 1 << 16;
        makecontext(&coroutine_context, coroutine, 0);
        wanted_suspended();
    }
    if (!strcmp(where, "gone")) {
        getcontext(&coroutine_context);
        coroutine_context.uc_stack.ss_sp = mmap(0, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        coroutine_context.uc_stack.ss_size = 1 << 16;
        makecontext(&coroutine_context, giving_way, 0);
        swapcontext(&main_context, &coroutine_context);
        wipe();
        leaf();
    }
#endif
    if (!strcmp(where, "saved")) {
        wanted_saved();
        wipe();
        leaf();
    }
    return 0;
}
