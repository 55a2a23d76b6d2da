"""Numbers of the SPIR-V 1.5 specification (https://registry.khronos.org/SPIR-V/) that the emitter uses."""

from __future__ import annotations

MAGIC = 0x07230203
VERSION = 0x00010500  # Vulkan 1.2 and later

OPS = {
    name: number
    for number, name in {
        5: "Name", 10: "Extension", 11: "ExtInstImport", 12: "ExtInst", 14: "MemoryModel", 15: "EntryPoint",
        16: "ExecutionMode", 17: "Capability", 19: "TypeVoid", 20: "TypeBool", 21: "TypeInt", 22: "TypeFloat",
        23: "TypeVector", 28: "TypeArray", 30: "TypeStruct", 32: "TypePointer", 33: "TypeFunction",
        41: "ConstantTrue", 42: "ConstantFalse", 43: "Constant", 44: "ConstantComposite", 54: "Function",
        56: "FunctionEnd", 59: "Variable", 61: "Load", 62: "Store", 65: "AccessChain", 71: "Decorate",
        72: "MemberDecorate", 80: "CompositeConstruct", 81: "CompositeExtract", 109: "ConvertFToU",
        110: "ConvertFToS", 111: "ConvertSToF", 112: "ConvertUToF", 113: "UConvert", 114: "SConvert", 115: "FConvert",
        116: "QuantizeToF16", 120: "ConvertUToPtr", 124: "Bitcast", 126: "SNegate", 127: "FNegate", 128: "IAdd",
        129: "FAdd", 130: "ISub", 131: "FSub", 132: "IMul", 133: "FMul", 134: "UDiv", 135: "SDiv", 136: "FDiv",
        137: "UMod", 140: "FRem", 156: "IsNan", 157: "IsInf", 164: "LogicalEqual", 165: "LogicalNotEqual",
        166: "LogicalOr", 167: "LogicalAnd", 168: "LogicalNot", 169: "Select", 170: "IEqual", 171: "INotEqual",
        172: "UGreaterThan", 173: "SGreaterThan", 174: "UGreaterThanEqual", 175: "SGreaterThanEqual",
        176: "ULessThan", 177: "SLessThan", 178: "ULessThanEqual", 179: "SLessThanEqual", 180: "FOrdEqual",
        183: "FUnordNotEqual", 184: "FOrdLessThan", 186: "FOrdGreaterThan", 188: "FOrdLessThanEqual",
        190: "FOrdGreaterThanEqual", 194: "ShiftRightLogical", 195: "ShiftRightArithmetic", 196: "ShiftLeftLogical",
        197: "BitwiseOr", 198: "BitwiseXor", 199: "BitwiseAnd", 200: "Not", 205: "BitCount", 224: "ControlBarrier",
        227: "AtomicLoad", 230: "AtomicCompareExchange", 234: "AtomicIAdd", 245: "Phi", 246: "LoopMerge",
        247: "SelectionMerge", 248: "Label", 249: "Branch", 250: "BranchConditional", 253: "Return",
        255: "Unreachable", 334: "GroupNonUniformAll", 335: "GroupNonUniformAny", 337: "GroupNonUniformBroadcast",
        338: "GroupNonUniformBroadcastFirst", 345: "GroupNonUniformShuffle", 346: "GroupNonUniformShuffleXor",
        347: "GroupNonUniformShuffleUp", 348: "GroupNonUniformShuffleDown", 349: "GroupNonUniformIAdd",
        350: "GroupNonUniformFAdd", 353: "GroupNonUniformSMin", 354: "GroupNonUniformUMin",
        355: "GroupNonUniformFMin", 356: "GroupNonUniformSMax", 357: "GroupNonUniformUMax",
        358: "GroupNonUniformFMax", 4450: "SDot", 4451: "UDot", 4452: "SUDot", 4456: "TypeCooperativeMatrixKHR",
        4457: "CooperativeMatrixLoadKHR", 4458: "CooperativeMatrixStoreKHR", 4459: "CooperativeMatrixMulAddKHR",
        6035: "AtomicFAddEXT",
    }.items()
}  # fmt: skip

CAPABILITIES = {
    "Shader": 1, "Float16": 9, "Float64": 10, "Int64": 11, "Int64Atomics": 12, "Int16": 22, "Int8": 39,
    "GroupNonUniform": 61, "GroupNonUniformVote": 62, "GroupNonUniformArithmetic": 63, "GroupNonUniformBallot": 64,
    "GroupNonUniformShuffle": 65, "StorageBuffer16BitAccess": 4433, "StorageBuffer8BitAccess": 4448,
    "SignedZeroInfNanPreserve": 4466, "PhysicalStorageBufferAddresses": 5347, "DotProductInput4x8BitPacked": 6018,
    "DotProduct": 6019, "CooperativeMatrixKHR": 6022, "VulkanMemoryModel": 5345, "AtomicFloat32AddEXT": 6033,
}  # fmt: skip

EXTENSION_OF_CAPABILITY = {
    "DotProduct": "SPV_KHR_integer_dot_product",
    "DotProductInput4x8BitPacked": "SPV_KHR_integer_dot_product",
    "AtomicFloat32AddEXT": "SPV_EXT_shader_atomic_float_add",
    "CooperativeMatrixKHR": "SPV_KHR_cooperative_matrix",
}

# GLSL.std.450 extended instructions
EXT = {
    "RoundEven": 2, "Trunc": 3, "FAbs": 4, "SAbs": 5, "Floor": 8, "Ceil": 9, "Asin": 16, "Acos": 17, "Atan": 18,
    "Sinh": 19, "Cosh": 20, "Asinh": 22, "Acosh": 23, "Atanh": 24, "Atan2": 25, "Exp": 27, "Log": 28, "Exp2": 29,
    "Log2": 30, "Sqrt": 31, "InverseSqrt": 32, "UMin": 38, "SMin": 39, "UMax": 41, "SMax": 42, "Fma": 50,
    "Ldexp": 53, "PackHalf2x16": 58, "UnpackHalf2x16": 62, "FindUMsb": 75, "NMin": 79, "NMax": 80,
}  # fmt: skip

# cooperative matrices: uses, and layouts in memory
MATRIX_A, MATRIX_B, MATRIX_ACCUMULATOR, ROW_MAJOR, COLUMN_MAJOR = 0, 1, 2, 0, 1
# storage classes
INPUT, WORKGROUP, FUNCTION, PUSH_CONSTANT, PHYSICAL = 1, 4, 7, 9, 5349
# scopes
DEVICE_SCOPE, WORKGROUP_SCOPE, SUBGROUP_SCOPE = 1, 2, 3
# memory semantics
RELAXED, ACQUIRE_RELEASE, UNIFORM_MEMORY, WORKGROUP_MEMORY = 0x0, 0x8, 0x40, 0x100
MAKE_AVAILABLE, MAKE_VISIBLE = 0x2000, 0x4000
# decorations
BLOCK, ARRAY_STRIDE, BUILTIN, COHERENT, NON_WRITABLE, OFFSET = 2, 6, 11, 23, 24, 35
BUILTINS = {
    "WorkgroupId": 26, "LocalInvocationId": 27, "SubgroupSize": 36, "NumSubgroups": 38, "SubgroupId": 40,
    "SubgroupLocalInvocationId": 41,
}  # fmt: skip
# execution models and modes, addressing and memory models
GL_COMPUTE, LOCAL_SIZE, SIGNED_ZERO_INF_NAN_PRESERVE = 5, 17, 4461
PHYSICAL_STORAGE_BUFFER_64, GLSL450, VULKAN = 5348, 1, 3
ALIGNED, NON_PRIVATE = 0x2, 0x20  # memory operands
UNROLL = 1  # loop control
PACKED_4X8 = 0  # packed vector format
REDUCE = 0  # group operation
