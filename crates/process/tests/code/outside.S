# What functions.c calls in another object file, and the hook that -mfentry calls.
	.intel_syntax noprefix
	.text
	.balign 16
	.globl outside
	.type outside, @function
outside:
	lea rax, [rdi+rsi*2]
	add rax, [rdx]
	ret
	.size outside, . - outside
	.globl __fentry__
	.type __fentry__, @function
__fentry__:
	ret
	.size __fentry__, . - __fentry__
	.section .note.GNU-stack, "", @progbits
