-- Vectors as bytes: float32, or half precision (float16), little-endian. Lua's `struct` does not know half floats.

local MANTISSA_BITS, LEAST_NORMAL = 8388608, 113 * 8388608 -- of a float32 whose value is normal as a half float
local ROUNDED = 6755399441055744 -- adding and subtracting 1.5 * 2^52 rounds a double to an integer, halves to even

-- By the high byte of a half float: its value is UNIT * (BASE + low byte). NaN for infinities and NaN.
local UNIT, BASE = {}, {}
for high = 0, 255 do
  local exponent, top = (high % 128 - high % 4) / 4, high % 4 * 256 -- there is no `math` while a library loads
  UNIT[high] = (high < 128 and 1 or -1) * 2 ^ ((exponent > 0 and exponent or 1) - 25)
  BASE[high] = exponent == 0 and top or exponent == 31 and 0 / 0 or top + 1024
end

-- The number of bytes of one number in a vector: 4, 2, or nil if the length fits neither format.
local function width_of(bytes, dimension)
  local width = #bytes / dimension
  return (width == 4 or width == 2) and width or nil
end

-- The sum of the squares of float32 numbers. Sixteen numbers a call take a third of the time of one a call.
local function squares_of_floats(bytes)
  local sum, position, length, take = 0, 1, #bytes, struct.unpack
  local a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p
  while position + 63 <= length do
    a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, position = take('<ffffffffffffffff', bytes, position)
    sum = sum + a * a + b * b + c * c + d * d + e * e + f * f + g * g + h * h
      + i * i + j * j + k * k + l * l + m * m + n * n + o * o + p * p
  end
  while position <= length do
    a, position = take('<f', bytes, position)
    sum = sum + a * a
  end
  return sum
end

local function squares_of_halves(bytes)
  local sum, byte, whole = 0, string.byte, #bytes - #bytes % 16
  for at = 1, whole, 16 do
    local a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p = byte(bytes, at, at + 15)
    local q, r = UNIT[b] * (BASE[b] + a), UNIT[d] * (BASE[d] + c)
    local s, t = UNIT[f] * (BASE[f] + e), UNIT[h] * (BASE[h] + g)
    local u, v = UNIT[j] * (BASE[j] + i), UNIT[l] * (BASE[l] + k)
    local w, x = UNIT[n] * (BASE[n] + m), UNIT[p] * (BASE[p] + o)
    sum = sum + q * q + r * r + s * s + t * t + u * u + v * v + w * w + x * x
  end
  for at = whole + 1, #bytes, 2 do
    local low, high = byte(bytes, at, at + 1)
    sum = sum + (UNIT[high] * (BASE[high] + low)) ^ 2
  end
  return sum
end

-- Whether a vector has the length of either format, is finite and has unit length.
function rm.is_unit_vector(bytes, dimension)
  local width = width_of(bytes, dimension)
  if not width then return false end
  local sum = width == 4 and squares_of_floats(bytes) or width == 2 and squares_of_halves(bytes)
  return sum == sum and math.abs(sum - 1) < 1e-2
end

-- The half float nearest to a float32, both as the integers of their bits.
local function half_of(bits)
  local sign = bits >= 2147483648 and 32768 or 0
  local size = bits % 2147483648
  if size >= LEAST_NORMAL then return sign + (size / 8192 - 114688 + ROUNDED - ROUNDED) end
  local exponent = math.floor(size / MANTISSA_BITS)
  local mantissa = size % MANTISSA_BITS + (exponent > 0 and MANTISSA_BITS or 0)
  return sign + (mantissa * 2 ^ (math.max(exponent, 1) - 126) + ROUNDED - ROUNDED)
end

local function to_halves(bytes)
  local parts = {}
  for position = 1, #bytes, 4 do
    parts[#parts + 1] = struct.pack('<I2', half_of((struct.unpack('<I4', bytes, position))))
  end
  return table.concat(parts)
end

local function to_floats(bytes)
  local parts = {}
  for position = 1, #bytes, 2 do
    local low, high = string.byte(bytes, position, position + 1)
    parts[#parts + 1] = struct.pack('<f', UNIT[high] * (BASE[high] + low))
  end
  return table.concat(parts)
end

-- A unit vector in the format of a field.
function rm.to_format(bytes, dimension, half)
  local width = width_of(bytes, dimension)
  if half then return width == 2 and bytes or to_halves(bytes) end
  return width == 4 and bytes or to_floats(bytes)
end
