# Entries by hand, of every kind that matters to a redirect. Each takes rdi, rsi, rdx (an array of 16 longs) and
# returns rax. The name tells what must become of it:
#   ok_      redirected by five bytes at the place
#   spring_  redirected through padding
#   no_REASON_  refused for that reason
#   x_       part of another case, not looked at
	.intel_syntax noprefix
	.text

	.macro f name
	.type \name, @function
\name:
	.endm
	.macro e name
	.size \name, . - \name
	.endm

	.balign 16
	.globl outside
f outside
here:
	lea rax, [rdi+rsi*2]
	add rax, [rdx]
	ret
e outside

# --- instructions that mean something else elsewhere ---
	.balign 16
f ok_load
	mov rax, value[rip]
	add rax, rdi
	ret
e ok_load
	.balign 16
f ok_lea
	lea rax, value[rip]
	mov rax, [rax]
	ret
e ok_lea
	.balign 16
f ok_compare_with_immediate
	cmp dword ptr value[rip], 12345678
	sete al
	movzx eax, al
	ret
e ok_compare_with_immediate
	.balign 16
f ok_load_second
	push rbx
	mov rbx, value[rip]
	lea rax, [rbx+rdi]
	pop rbx
	ret
e ok_load_second
	.balign 16
f ok_xmm
	movsd xmm0, value[rip]
	movq rax, xmm0
	ret
e ok_xmm

# --- calls ---
	.balign 16
f ok_call
	call here
	inc rax
	ret
e ok_call
	.balign 16
f ok_push_call
	push rcx
	call here
	pop rcx
	inc rax
	ret
e ok_push_call
	.balign 16
f ok_call_next
	call 1f
1:	pop rax
	lea rcx, 1b[rip]
	sub rax, rcx
	add rax, rdi
	ret
e ok_call_next
	.balign 16
f ok_call_self
	sub edi, edi		# 2
	nop			# 1
	call x_returns_its_return_address
	lea rcx, 1f[rip]
1:	sub rax, rcx
	ret
e ok_call_self
	.balign 16
f x_returns_its_return_address
	mov rax, [rsp]
	ret
e x_returns_its_return_address
	.balign 16
f ok_call_memory
	call pointer_to_outside[rip]
	inc rax
	ret
e ok_call_memory
	.balign 16
f ok_notrack_call
	push rcx
	nop
	notrack call rcx_is_outside[rip]
	pop rcx
	ret
e ok_notrack_call
	.balign 16
f ok_call_through_stack
	lea rax, here[rip]
	push rax
	call x_calls_through_stack
	pop rcx
	ret
e ok_call_through_stack
	.balign 16
f ok_x_calls_through_stack
x_calls_through_stack:
	nop
	call [rsp+8]
	inc rax
	ret
e ok_x_calls_through_stack
	.balign 16
f ok_call_register
	mov rax, [rdx]		# 3
	xor eax, eax		# 2
	lea rax, here[rip]
	call rax
	ret
e ok_call_register
	.balign 16
f ok_call_r11
	lea r11, here[rip]
	call r11
	ret
e ok_call_r11
	.balign 16
f ok_outer_indirect
	push rbx
	lea rbx, here[rip]
	call x_inner_indirect
	pop rbx
	ret
e ok_outer_indirect
	.balign 16
f ok_inner_indirect
x_inner_indirect:
	nop
	nop
	nop
	call rbx
	add rax, 3
	ret
e ok_inner_indirect
	.balign 16
f spring_x_call
	call rcx
	inc rax
	add rax, rdi
	ret
e spring_x_call

# --- jumps ---
	.balign 16
f ok_jmp
	.byte 0xe9
	.long here - . - 4
e ok_jmp
	.balign 16
f ok_jmp_short
	jmp 1f
	.skip 6, 0x90
1:	lea rax, [rsi+rdi*4]
	ret
e ok_jmp_short
	.balign 16
f ok_jmp_memory
	jmp pointer_to_outside[rip]
e ok_jmp_memory
	.balign 16
f ok_jmp_register
	push rcx
	nop
	pop rcx
	jmp x_indirectly
x_indirectly:
	lea rax, here[rip]
	notrack jmp rax
e ok_jmp_register
	.balign 16
f ok_bnd_jmp
	.byte 0xf2		# bnd
	jmp here
e ok_bnd_jmp
	.balign 16
f ok_jcc_short
	jc 1f
	jp 1f
	xor eax, eax
1:	mov eax, 3
	ret
e ok_jcc_short
	.balign 16
f ok_jcc_test
	test edi, edi
	js 1f
	nop
	mov rax, rdi
	ret
1:	mov rax, rsi
	ret
e ok_jcc_test
	.balign 16
f ok_jcc_near
	test dil, 4		# 4 bytes
	jz here
	mov rax, rsi
	ret
e ok_jcc_near
	.balign 16
f ok_jrcxz
	mov ecx, edi
	jrcxz 1f
	nop
	lea rax, [rcx+5]
	ret
1:	mov rax, rsi
	ret
e ok_jrcxz
	.balign 16
f ok_jecxz
	mov ecx, edi
	jecxz 1f
	lea rax, [rcx+5]
	ret
1:	mov rax, rsi
	ret
e ok_jecxz
	.balign 16
f ok_loop_ahead
	mov ecx, edi
	loop 1f
	nop
	mov eax, 17
	ret
1:	lea rax, [rcx+1]
	ret
e ok_loop_ahead
	.balign 16
f ok_loopne
	mov ecx, edi
	loopne 1f
	nop
	mov eax, 17
	ret
1:	lea rax, [rcx+1]
	ret
e ok_loopne

# --- loops among the displaced instructions, and back to the entry ---
	.balign 16
f ok_loop_inside
	push 7
	pop rcx
1:	loop 1b
	nop
	mov rax, rdi
	ret
e ok_loop_inside
	.balign 16
f ok_loop_to_entry
	dec dil			# 3
	jnz ok_loop_to_entry	# 2
	movzx eax, dil
	add rax, rsi
	ret
e ok_loop_to_entry
	.balign 16
f ok_loop_back_from_afar
	add rsi, rdi
	sub edi, 3
	and edi, 63
	test edi, 7
	jnz ok_loop_back_from_afar
	mov rax, rsi
	ret
e ok_loop_back_from_afar
	.balign 16
f ok_endbr_loop_back
	endbr64
1:	add rsi, rdi
	sub edi, 3
	and edi, 63
	test edi, 7
	jnz 1b
	jc ok_endbr_loop_back
	mov rax, rsi
	ret
e ok_endbr_loop_back
	.balign 16
f ok_red_zone			# everything live at the back edge: flags, r11, the red zone
	xor r11d, r11d
	mov qword ptr [rsp-16], 5
	mov qword ptr [rsp-128], 9
	and edi, 15
	clc
	jmp ok_inner_red_zone
e ok_red_zone
	.balign 16
f ok_inner_red_zone
	adc r11, [rsp-16]
	lea r11, [r11+r11*2]
	add r11, [rsp-128]
	mov [rsp-16], rdi
	mov [rsp-128], r11
	sub edi, 1
	jb 1f
	bt esi, edi
	jmp ok_inner_red_zone
1:	mov rax, r11
	ret
e ok_inner_red_zone

# --- short ---
	.balign 16
f ok_x_ret
	ret
e ok_x_ret
	.balign 16
f ok_x_repz_ret
	repz ret
e ok_x_repz_ret
	.balign 16, 0xcc
f ok_short_int3
	xor eax, eax
	ret
e ok_short_int3
	.balign 16, 0xcc
f ok_short_zeros
	mov rax, rsi
	ret
e ok_short_zeros
	.skip 3, 0
	.balign 16, 0
f ok_x_endbr_ret
	endbr64
	ret
e ok_x_endbr_ret
	.balign 16
f ok_runs_into_padding
	mov rax, rdi
e ok_runs_into_padding
	.balign 16
f x_after
	add rax, rsi
	ret
e x_after
	.balign 64
	.skip 600, 0xf4		# no padding near these
f no_TooShort_ret
	mov rax, rdi
	ret
e no_TooShort_ret
f x_right_behind
	mov rax, [rdx+8]
	add rax, rdi
	ret
e x_right_behind
	.skip 300, 0xf4
f no_TooShort_nopped		# a function that begins with nops is no padding
	xor eax, eax
	ret
e no_TooShort_nopped
f ok_patchable
	nop
	nop
	nop
	nop
	nop
	mov rax, rdi
	ret
e ok_patchable
	.skip 300, 0xf4
f no_BranchInto_own
	push rcx
1:	inc rdi
	test dil, 7
	jnz 1b
	pop rcx
	mov rax, rdi
	ret
e no_BranchInto_own
	.skip 300, 0xf4
f x_jumps_into_the_next
	mov rax, rsi
	jmp x_middle
e x_jumps_into_the_next
f no_BranchInto_from_before
	mov rax, rdi
x_middle:
	add rax, 5
	add rax, [rdx]
	ret
e no_BranchInto_from_before
	.skip 300, 0xf4
f no_BranchInto_from_afar
	push rcx
x_cold_target:
	lea rax, [rdi+rsi]
	pop rcx
	test al, 1
	jz x_cold_part
	ret
e no_BranchInto_from_afar
	.skip 300, 0xf4
f no_AddressTaken_lea
	push rcx
x_taken:
	lea rax, [rdi+rsi]
	pop rcx
	lea rcx, x_taken[rip]
	sub rcx, rcx
	add rax, rcx
	ret
e no_AddressTaken_lea
	.skip 300, 0xf4
f no_TableInto_switch
	xor eax, eax
x_again:
	mov rcx, rdi
	and ecx, 3
	lea r8, table[rip]
	movsxd rcx, [r8+rcx*4]
	add rcx, r8
	inc rdi
	jmp rcx
x_end:	ret
x_add:	add rax, rsi
	ret
e no_TableInto_switch
	.skip 300, 0xf4
f no_OtherEntry_nested
	nop
	nop
f x_nested
	mov rax, rdi
	ret
e x_nested
	.size no_OtherEntry_nested, . - no_OtherEntry_nested
	.skip 300, 0xf4
f no_CallReturnsInto_early
	call rcx
	inc rax
	add rax, rdi
	ret
e no_CallReturnsInto_early
	.skip 300, 0xf4
f no_Unmovable_eip
	mov eax, [eip+4]
	mov rax, rdi
	ret
e no_Unmovable_eip
	.skip 300, 0xf4
f no_Undecodable_bytes
	.byte 0x06, 0x06, 0x06, 0x06, 0x06, 0x06
	ret
e no_Undecodable_bytes
	.skip 300, 0xf4

# --- springboards ---
	.skip 3, 0x90
	.balign 16
f spring_short
	mov rax, rdi
	ret
e spring_short
f x_behind_spring
	mov rax, [rdx+8]
	ret
e x_behind_spring
	.skip 12, 0xcc
f spring_branch
	push rcx
	push rcx
1:	inc rdi
	test dil, 7
	jnz 1b
	pop rcx
	pop rcx
	mov rax, rdi
	ret
e spring_branch

	.balign 4096, 0xf4
	.skip 4096 - 60, 0xf4
f x_before_page_1
	lea rax, [rdi+rsi*4+8]
	ret
e x_before_page_1
	.skip 4, 0xcc		# too short
f x_before_page_2
	lea rax, [rdi+rsi*4+8]
	ret
e x_before_page_2
	.skip 12, 0x90
f x_before_page_3
	lea rax, [rdi+rsi*4+8]
	ret
e x_before_page_3
	.skip 60 - 2 - 34, 0xf4
f spring_page_2
	mov rax, rdi
	lea rax, [rax+rsi*4]
	ret
e spring_page_2
	.skip 400, 0xf4
	.balign 4096, 0xf4
	.skip 4096 - 4, 0xf4
f no_StraddlesPage_no_padding
	lea rax, [rdi+rsi*4]
	add rax, [rdx]
	ret
e no_StraddlesPage_no_padding
	.skip 400, 0xf4
	.balign 4096, 0xf4
	.skip 4096 - 16, 0xf4
f x_with_padding
	ret
e x_with_padding
	.skip 14, 0xcc
f no_StraddlesPage_last_byte
	lea rax, [rdi+rsi*4]
	add rax, [rdx]
	ret
e no_StraddlesPage_last_byte
	.skip 400, 0xf4
	.balign 64
x_cold_part:
	add rdi, 1
	push rcx
	jmp x_cold_target

	.section .rodata
	.balign 4
table:	.long x_add - table, x_again - table, x_again - table, x_end - table
	.data
	.balign 8
value:	.quad 12345678
	.section .data.rel.local, "aw"
pointer_to_outside: .quad here
rcx_is_outside: .quad here
	.section .note.GNU-stack, "", @progbits
