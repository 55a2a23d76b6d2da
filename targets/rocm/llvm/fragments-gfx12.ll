; Where the lanes of a wave of 32 hold 16 x 16 tiles on RDNA4: of both operands lane l has columns 8 (l / 16) to
; 8 (l / 16) + 7 of row l % 16, of the result the elements (8 (l / 16) + i, l % 16).
target triple = "amdgcn-amd-amdhsa-hcc"

define i32 @mlcrt_fragment_column(i32 %lane) alwaysinline nounwind {
  %high = and i32 %lane, 16
  %r = lshr i32 %high, 1
  ret i32 %r
}

define i32 @mlcrt_result_row(i32 %lane, i32 %i) alwaysinline nounwind {
  %first = call i32 @mlcrt_fragment_column(i32 %lane)
  %r = or i32 %first, %i
  ret i32 %r
}
