--[[
  sha256: the SHA-256 of a byte string, in lower-case hex (FIPS 180-4).

  Redis gives scripts SHA-1 only. This file is pure: it defines one local function and touches nothing
  else; scripts.py puts it in front of the script that calls it.

    sha256(message) -> 64 hex digits

  Words are 32-bit. Redis and Valkey give scripts Mike Pall's `bit` library, whose results are signed.
]]
local sha256
do
  local floor, byte, char, rep, format = math.floor, string.byte, string.char, string.rep, string.format
  local TWO32 = 4294967296

  local band, bxor, bnot, ror, shr, tobit = bit.band, bit.bxor, bit.bnot, bit.ror, bit.rshift, bit.tobit

  -- FIPS 180-4 §4.2.2: the first 32 bits of the fractional parts of the cube roots of the first 64 primes.
  local K = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
  }

  local W = {}

  -- FIPS 180-4 §6.2.2: one block of 64 bytes, at `at`, folded into the eight words of H.
  local function compress(H, message, at)
    for t = 1, 16 do
      local b1, b2, b3, b4 = byte(message, at + t * 4 - 4, at + t * 4 - 1)
      W[t] = tobit(b1 * 16777216 + b2 * 65536 + b3 * 256 + b4)
    end
    for t = 17, 64 do
      local w15, w2 = W[t - 15], W[t - 2]
      -- W[t] = σ1(W[t-2]) + W[t-7] + σ0(W[t-15]) + W[t-16]
      W[t] = tobit(bxor(ror(w2, 17), ror(w2, 19), shr(w2, 10)) + W[t - 7]
        + bxor(ror(w15, 7), ror(w15, 18), shr(w15, 3)) + W[t - 16])
    end
    local a, b, c, d, e, f, g, h = H[1], H[2], H[3], H[4], H[5], H[6], H[7], H[8]
    for t = 1, 64 do
      -- T1 = h + Σ1(e) + Ch(e, f, g) + K[t] + W[t];  Ch(e, f, g) = g xor (e and (f xor g))
      local t1 = h + bxor(ror(e, 6), ror(e, 11), ror(e, 25)) + bxor(g, band(e, bxor(f, g))) + K[t] + W[t]
      -- T2 = Σ0(a) + Maj(a, b, c);  Maj(a, b, c) = (a and b) xor (c and (a xor b))
      local t2 = bxor(ror(a, 2), ror(a, 13), ror(a, 22)) + bxor(band(a, b), band(c, bxor(a, b)))
      h, g, f, e, d, c, b, a = g, f, e, tobit(d + t1), c, b, a, tobit(t1 + t2)
    end
    H[1], H[2], H[3], H[4] = tobit(H[1] + a), tobit(H[2] + b), tobit(H[3] + c), tobit(H[4] + d)
    H[5], H[6], H[7], H[8] = tobit(H[5] + e), tobit(H[6] + f), tobit(H[7] + g), tobit(H[8] + h)
  end

  function sha256(message)
    -- FIPS 180-4 §5.3.3: the first 32 bits of the fractional parts of the square roots of the first 8 primes.
    local H = {
      tobit(0x6a09e667), tobit(0xbb67ae85), tobit(0x3c6ef372), tobit(0xa54ff53a),
      tobit(0x510e527f), tobit(0x9b05688c), tobit(0x1f83d9ab), tobit(0x5be0cd19),
    }
    local length = #message
    local whole = length - length % 64
    for at = 1, whole, 64 do
      compress(H, message, at)
    end
    -- FIPS 180-4 §5.1.1: 0x80, zeros, and the length in bits as 64 bits, to a multiple of 64 bytes.
    local bits = length * 8
    local high, low = floor(bits / TWO32), bits % TWO32
    local function big_endian(word)
      return char(floor(word / 16777216) % 256, floor(word / 65536) % 256, floor(word / 256) % 256, word % 256)
    end
    local tail = string.sub(message, whole + 1) .. '\128' .. rep('\0', (55 - length) % 64)
      .. big_endian(high) .. big_endian(low)
    for at = 1, #tail, 64 do
      compress(H, tail, at)
    end
    local hex = {}
    for i = 1, 8 do
      hex[i] = format('%08x', H[i] % TWO32)
    end
    return table.concat(hex)
  end
end
