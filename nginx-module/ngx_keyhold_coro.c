/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Coroutines: stacks of their own with a guard page below, and a switch
 * between them.  A worker has one thread, so the one that runs is a variable.
 *
 * swapcontext() would make two system calls per round to save a signal mask
 * that never changes; on x86_64 the switch is our own, elsewhere it is that.
 */

#include "ngx_keyhold.h"

#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#define NGX_KEYHOLD_ASAN  1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define NGX_KEYHOLD_ASAN  1
#endif
#endif

#ifndef NGX_KEYHOLD_ASAN
#define NGX_KEYHOLD_ASAN  0
#endif

#if (NGX_KEYHOLD_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#include <sanitizer/lsan_interface.h>
#endif

#if defined(__x86_64__) && !defined(NGX_KEYHOLD_UCONTEXT)
#define NGX_KEYHOLD_SWITCH  1
#else
#define NGX_KEYHOLD_SWITCH  0
#include <ucontext.h>
#endif


/* libssl with certificate callbacks, and PCRE's JIT with 35K of its own */
#define NGX_KEYHOLD_MAP  (256 * 1024)

/* the coroutine's state is at the upper end, in a page that is used anyway */
#define NGX_KEYHOLD_STACK                                                     \
    (NGX_KEYHOLD_MAP - ngx_align(sizeof(ngx_keyhold_coro_t), 64))

/* so many stacks keep their pages when they are free */
#define NGX_KEYHOLD_CACHE  1024

#define NGX_KEYHOLD_OTHER_MAPS  1000


struct ngx_keyhold_coro_s {
#if (NGX_KEYHOLD_SWITCH)
    void                 *sp;
    void                 *caller_sp;
#else
    ucontext_t            context;
    ucontext_t            caller_context;
#endif
    ngx_keyhold_coro_t   *caller;      /* NULL: the main stack */
    ngx_keyhold_coro_t   *next;        /* while it is free */
    u_char               *stack;       /* its lowest byte */
    void                (*func)(void *data);
    void                 *data;
    unsigned              ended:1;
#if (NGX_KEYHOLD_ASAN)
    void                 *fake;
    void                 *caller_fake;
    const void           *caller_bottom;
    size_t                caller_size;
#endif
};


static void ngx_keyhold_coro_main(void);
static ngx_uint_t ngx_keyhold_coro_enter(ngx_keyhold_coro_t *coro);
static void ngx_keyhold_coro_leave(ngx_uint_t ended);
static void ngx_keyhold_coro_destroy(ngx_keyhold_coro_t *coro);


static ngx_keyhold_coro_t  *ngx_keyhold_coro_current;
static ngx_keyhold_coro_t  *ngx_keyhold_coro_free;
static ngx_uint_t           ngx_keyhold_coro_free_n;


#if (NGX_KEYHOLD_SWITCH)

/*
 * void ngx_keyhold_coro_switch(void **save, void *to)
 *
 * Saves what a function must preserve (System V ABI: rbx, rbp, r12 to r15, the
 * control words of SSE and x87) on the current stack, whose pointer goes to
 * *save, and takes the same from the stack "to".  Signal mask, errno and
 * everything else are the thread's, and stay.
 */

void ngx_keyhold_coro_switch(void **save, void *to);
void ngx_keyhold_coro_entry(void);

__asm__ (
    ".text\n"
    ".p2align 4\n"
    ".hidden ngx_keyhold_coro_switch\n"
    ".globl ngx_keyhold_coro_switch\n"
    ".type ngx_keyhold_coro_switch, @function\n"
    "ngx_keyhold_coro_switch:\n"
    "    .cfi_startproc\n"
    "    endbr64\n"
    "    pushq %rbp\n"
    "    pushq %rbx\n"
    "    pushq %r12\n"
    "    pushq %r13\n"
    "    pushq %r14\n"
    "    pushq %r15\n"
    "    subq $8, %rsp\n"
    "    stmxcsr (%rsp)\n"
    "    fnstcw 4(%rsp)\n"
    "    movq %rsp, (%rdi)\n"
    "    movq %rsi, %rsp\n"
    "    ldmxcsr (%rsp)\n"
    "    fldcw 4(%rsp)\n"
    "    addq $8, %rsp\n"
    "    popq %r15\n"
    "    popq %r14\n"
    "    popq %r13\n"
    "    popq %r12\n"
    "    popq %rbx\n"
    "    popq %rbp\n"
    "    ret\n"
    "    .cfi_endproc\n"
    ".size ngx_keyhold_coro_switch, .-ngx_keyhold_coro_switch\n"

    /* where a new stack "returns" to: what it is to call is in r12 */

    ".p2align 4\n"
    ".hidden ngx_keyhold_coro_entry\n"
    ".globl ngx_keyhold_coro_entry\n"
    ".type ngx_keyhold_coro_entry, @function\n"
    "ngx_keyhold_coro_entry:\n"
    "    .cfi_startproc\n"
    "    .cfi_undefined rip\n"
    "    endbr64\n"
    "    xorl %ebp, %ebp\n"
    "    callq *%r12\n"
    "    ud2\n"
    "    .cfi_endproc\n"
    ".size ngx_keyhold_coro_entry, .-ngx_keyhold_coro_entry\n"
);

#endif


ngx_keyhold_coro_t *
ngx_keyhold_coro_get(ngx_log_t *log)
{
    u_char              *map;
    ngx_keyhold_coro_t  *coro;

    coro = ngx_keyhold_coro_free;

    if (coro != NULL) {
        ngx_keyhold_coro_free = coro->next;
        ngx_keyhold_coro_free_n--;
        return coro;
    }

    map = mmap(NULL, ngx_pagesize + NGX_KEYHOLD_MAP, PROT_READ|PROT_WRITE,
               MAP_PRIVATE|MAP_ANONYMOUS|MAP_NORESERVE|MAP_STACK, -1, 0);

    if (map == MAP_FAILED) {
        ngx_log_error(NGX_LOG_ERR, log, ngx_errno,
                      "keyhold: handshake refused: mmap() of its stack failed");
        return NULL;
    }

    if (mprotect(map, ngx_pagesize, PROT_NONE) == -1) {
        ngx_log_error(NGX_LOG_ERR, log, ngx_errno,
                      "keyhold: handshake refused: mprotect() of its stack's "
                      "guard page failed (see vm.max_map_count)");
        (void) munmap(map, ngx_pagesize + NGX_KEYHOLD_MAP);
        return NULL;
    }

    coro = (ngx_keyhold_coro_t *) (map + ngx_pagesize + NGX_KEYHOLD_STACK);
    coro->stack = map + ngx_pagesize;

#if (NGX_KEYHOLD_ASAN)
    __lsan_register_root_region(coro->stack, NGX_KEYHOLD_MAP);
#endif

    return coro;
}


static void
ngx_keyhold_coro_destroy(ngx_keyhold_coro_t *coro)
{
#if (NGX_KEYHOLD_ASAN)
    __lsan_unregister_root_region(coro->stack, NGX_KEYHOLD_MAP);
#endif

    (void) munmap(coro->stack - ngx_pagesize, ngx_pagesize + NGX_KEYHOLD_MAP);
}


void
ngx_keyhold_coro_release(ngx_keyhold_coro_t *coro)
{
#if (NGX_KEYHOLD_ASAN)

    /* frames that were left for good have not been unpoisoned */

    ASAN_UNPOISON_MEMORY_REGION(coro->stack, NGX_KEYHOLD_STACK);
    coro->fake = NULL;

#endif

    if (ngx_keyhold_coro_free_n >= NGX_KEYHOLD_CACHE) {
        ngx_keyhold_coro_destroy(coro);
        return;
    }

    coro->next = ngx_keyhold_coro_free;
    ngx_keyhold_coro_free = coro;
    ngx_keyhold_coro_free_n++;
}


ngx_uint_t
ngx_keyhold_coro_start(ngx_keyhold_coro_t *coro, void (*func)(void *data),
    void *data)
{
    coro->func = func;
    coro->data = data;
    coro->ended = 0;

#if (NGX_KEYHOLD_SWITCH)
    {
    void  **sp;

    /* what ngx_keyhold_coro_switch() will take from here */

    sp = (void **) (coro->stack + NGX_KEYHOLD_STACK);
    *--sp = NULL;
    *--sp = NULL;
    *--sp = (void *) ngx_keyhold_coro_entry;      /* return address */
    *--sp = NULL;                                 /* rbp */
    *--sp = NULL;                                 /* rbx */
    *--sp = (void *) ngx_keyhold_coro_main;       /* r12 */
    *--sp = NULL;                                 /* r13 */
    *--sp = NULL;                                 /* r14 */
    *--sp = NULL;                                 /* r15 */
    --sp;

    __asm__ __volatile__ ("stmxcsr (%0)\n\tfnstcw 4(%0)"
                          : : "r" (sp) : "memory");

    coro->sp = sp;
    }
#else
    if (getcontext(&coro->context) == -1) {
        coro->ended = 1;
        return 1;
    }

    coro->context.uc_stack.ss_sp = coro->stack;
    coro->context.uc_stack.ss_size = NGX_KEYHOLD_STACK;
    coro->context.uc_link = NULL;
    makecontext(&coro->context, ngx_keyhold_coro_main, 0);
#endif

    return ngx_keyhold_coro_enter(coro);
}


ngx_uint_t
ngx_keyhold_coro_resume(ngx_keyhold_coro_t *coro)
{
    return ngx_keyhold_coro_enter(coro);
}


static ngx_uint_t
ngx_keyhold_coro_enter(ngx_keyhold_coro_t *coro)
{
    coro->caller = ngx_keyhold_coro_current;
    ngx_keyhold_coro_current = coro;

#if (NGX_KEYHOLD_ASAN)
    __sanitizer_start_switch_fiber(&coro->caller_fake, coro->stack,
                                   NGX_KEYHOLD_STACK);
#endif

#if (NGX_KEYHOLD_SWITCH)
    ngx_keyhold_coro_switch(&coro->caller_sp, coro->sp);
#else
    (void) swapcontext(&coro->caller_context, &coro->context);
#endif

#if (NGX_KEYHOLD_ASAN)
    __sanitizer_finish_switch_fiber(coro->caller_fake, NULL, NULL);
#endif

    ngx_keyhold_coro_current = coro->caller;

    return coro->ended;
}


static void
ngx_keyhold_coro_leave(ngx_uint_t ended)
{
    ngx_keyhold_coro_t  *coro;

    coro = ngx_keyhold_coro_current;
    coro->ended = ended;

#if (NGX_KEYHOLD_ASAN)

    /* NULL: the stack will not be used again */

    __sanitizer_start_switch_fiber(ended ? NULL : &coro->fake,
                                   coro->caller_bottom, coro->caller_size);
#endif

#if (NGX_KEYHOLD_SWITCH)
    ngx_keyhold_coro_switch(&coro->sp, coro->caller_sp);
#else
    (void) swapcontext(&coro->context, &coro->caller_context);
#endif

#if (NGX_KEYHOLD_ASAN)
    __sanitizer_finish_switch_fiber(coro->fake, &coro->caller_bottom,
                                    &coro->caller_size);
#endif
}


static void
ngx_keyhold_coro_main(void)
{
    ngx_keyhold_coro_t  *coro;

    coro = ngx_keyhold_coro_current;

#if (NGX_KEYHOLD_ASAN)
    __sanitizer_finish_switch_fiber(NULL, &coro->caller_bottom,
                                    &coro->caller_size);
#endif

    coro->func(coro->data);

    ngx_keyhold_coro_leave(1);
}


void
ngx_keyhold_coro_yield(void)
{
    ngx_keyhold_coro_leave(0);
}


void
ngx_keyhold_coro_exit(void)
{
    ngx_keyhold_coro_leave(1);
}


void *
ngx_keyhold_coro_data(void)
{
    return ngx_keyhold_coro_current ? ngx_keyhold_coro_current->data : NULL;
}


void
ngx_keyhold_coro_cleanup(void)
{
    ngx_keyhold_coro_t  *coro;

    while (ngx_keyhold_coro_free != NULL) {
        coro = ngx_keyhold_coro_free;
        ngx_keyhold_coro_free = coro->next;
        ngx_keyhold_coro_destroy(coro);
    }

    ngx_keyhold_coro_free_n = 0;
}


void
ngx_keyhold_coro_check(ngx_int_t n, ngx_log_t *log)
{
    FILE  *file;
    long   most;

    file = fopen("/proc/sys/vm/max_map_count", "r");
    if (file == NULL) {
        return;
    }

    if (fscanf(file, "%ld", &most) != 1) {
        most = 0;
    }

    (void) fclose(file);

    /* a stack and its guard page are two; nginx and its libraries have some */

    if (most != 0 && n > (most - NGX_KEYHOLD_OTHER_MAPS) / 2) {
        ngx_log_error(NGX_LOG_WARN, log, 0,
                      "keyhold: keyhold_max_inflight %i is more than "
                      "vm.max_map_count (%l) allows for", n, most);
    }
}
