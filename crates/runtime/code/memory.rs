//! The functions that compilers call for copies and fills. In assembly, since in Rust they would become calls to themselves.
#![allow(unsafe_code)]

use core::arch::global_asm;

global_asm!(
    ".section .text.memory,\"ax\",@progbits",
    ".globl memcpy",
    ".type memcpy, @function",
    "memcpy:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "rep movsb",
    "ret",
    ".size memcpy, . - memcpy",
    ".globl memset",
    ".type memset, @function",
    "memset:",
    "mov r8, rdi",
    "mov eax, esi",
    "mov rcx, rdx",
    "rep stosb",
    "mov rax, r8",
    "ret",
    ".size memset, . - memset",
    ".text",
);
