/* Hand-written functions with call frame information of unusual kinds. */
    .text
    .globl  by_register
    .type   by_register, @function
/* Keeps its return address in a register, as vfork does. */
by_register:
    .cfi_startproc
    popq    %rdx
    .cfi_adjust_cfa_offset -8
    .cfi_register %rip, %rdx
    xorl    %eax, %eax
    nop
    pushq   %rdx
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %rip, 0
    ret
    .cfi_endproc
    .size   by_register, . - by_register

    .globl  by_expression
    .type   by_expression, @function
/* A frame address that only an expression finds: the old stack pointer is stored at the new one. */
by_expression:
    .cfi_startproc
    pushq   %rbx
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %rbx, 0
    movq    %rsp, %rbx
    .cfi_def_cfa_register %rbx
    andq    $-64, %rsp
    subq    $64, %rsp
    movq    %rbx, (%rsp)
    /* DW_CFA_def_cfa_expression: breg7 0, deref, plus_uconst 16 */
    .cfi_escape 0x0f, 0x05, 0x77, 0x00, 0x06, 0x23, 0x10
    xorl    %ebx, %ebx
    movl    $7, %edi
    call    leaf@PLT
    movq    (%rsp), %rbx
    .cfi_def_cfa %rbx, 16
    movq    %rbx, %rsp
    .cfi_def_cfa_register %rsp
    popq    %rbx
    .cfi_restore %rbx
    .cfi_adjust_cfa_offset -8
    ret
    .cfi_endproc
    .size   by_expression, . - by_expression

    .globl  two_ways_out
    .type   two_ways_out, @function
/* Epilogues in the middle, and a tail call. */
two_ways_out:
    .cfi_startproc
    pushq   %rbp
    .cfi_def_cfa_offset 16
    .cfi_offset %rbp, -16
    movq    %rsp, %rbp
    .cfi_def_cfa_register %rbp
    pushq   %rdi
    testq   %rdi, %rdi
    je      1f
    .cfi_remember_state
    popq    %rdi
    popq    %rbp
    .cfi_restore %rbp
    .cfi_def_cfa %rsp, 8
    ret
1:
    .cfi_restore_state
    call    by_register
    popq    %rdi
    popq    %rbp
    .cfi_restore %rbp
    .cfi_def_cfa %rsp, 8
    jmp     leaf@PLT
    .cfi_endproc
    .size   two_ways_out, . - two_ways_out

    .globl  at_calls_only
    .type   at_calls_only, @function
/* As -fno-asynchronous-unwind-tables may have it: nothing is said of the way out, and believed there, these tables lose
   the caller. */
at_calls_only:
    .cfi_startproc
    pushq   %rbp
    .cfi_def_cfa_offset 16
    .cfi_offset %rbp, -16
    movq    %rsp, %rbp
    .cfi_def_cfa_register %rbp
    pushq   %rbx
    .cfi_offset %rbx, -24
    subq    $8, %rsp
    movq    %rdi, %rbx
    call    leaf@PLT
    testq   %rbx, %rbx
    jne     1f
    addq    $8, %rsp
    popq    %rbx
    popq    %rbp
    ret
1:  addq    $8, %rsp
    popq    %rbx
    leave
    jmp     leaf@PLT
    .cfi_endproc
    .size   at_calls_only, . - at_calls_only

    .globl  without
    .type   without, @function
/* No information at all. */
without:
    pushq   %r12
    movq    %rdi, %r12
    call    two_ways_out
    addq    %r12, %rax
    popq    %r12
    ret
    .size   without, . - without

    .globl  without_end
    .type   without_end, @function
/* No information, and it ends with a call that never returns; what follows is no part of it. */
without_end:
    subq    $40, %rsp
    call    away
    .size   without_end, . - without_end
    .globl  behind
    .type   behind, @function
behind:
    popq    %rax
    ret
    .size   behind, . - behind

    .section .note.GNU-stack, "", @progbits
