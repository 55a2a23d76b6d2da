; Where the lanes of a wave of 32 hold 16 x 16 tiles: of both operands lane l has all 16 columns of row l % 16, of the
; result the elements (2 i + l / 16, l % 16). So does RDNA3's v_wmma, and what takes its place on RDNA1 and RDNA2.
target triple = "amdgcn-amd-amdhsa-hcc"

define i32 @mlcrt_fragment_column(i32 %lane) alwaysinline nounwind {
  ret i32 0
}

define i32 @mlcrt_result_row(i32 %lane, i32 %i) alwaysinline nounwind {
  %high = lshr i32 %lane, 4
  %even = shl i32 %i, 1
  %r = or i32 %even, %high
  ret i32 %r
}
