-- The counters of limits, for all workers. One call is one step: nothing of another worker happens within it.
--
-- KEYS[1] leases   sorted set: lease -> ms of this server's clock until which it holds. A worker's reservations count
--                  only while its lease does, so what a killed worker had reserved is free again when it runs out.
-- KEYS[2] epoch    hash: run (which server this is), n (changes whenever counters may have missed usage)
-- KEYS[3] done     number of the last batch of settlements of the calling worker
-- KEYS[4…] counters, each a hash:
--   u used · b begin of its window · g begin of the window it was made in, by which reservations find it again
--   h begin of the latest window it has been in: any later one is empty · e epoch in which u was complete
--   s ms at which u was read from the records · q ms at which they are to be read again · r:LEASE reserved
-- ARGV[1] what to do, ARGV[2] the worker's lease, the rest as each part says.

local clock = redis.call('TIME')
local ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
local verb, lease = ARGV[1], ARGV[2]
local KEPT = 86400  -- s that a counter outlives its window, so that the next window is known to be empty
local LATE = 5  -- s by which two workers' clocks may differ

local function holds()
  local till = redis.call('ZSCORE', KEYS[1], lease)
  return till and tonumber(till) >= ms
end

-- From now on every counter is read from the records again before it is believed.
local function doubt()
  redis.call('HSET', KEYS[2], 'n', clock[1] .. '.' .. clock[2])
end

local function keep_lease(length)
  redis.call('ZADD', KEYS[1], ms + length, lease)  -- first: of a full server only a first write fails
  -- What was open at a worker that died was used, and is not settled: it is recorded as interrupted.
  if redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. ms) > 0 then doubt() end
  redis.call('PEXPIRE', KEYS[1], length * 10)
  redis.call('EXPIRE', KEYS[2], 40 * KEPT)
  return redis.call('ZCARD', KEYS[1])
end

local living
local function lives(other)
  if other == lease then return true end
  if not living then
    living = {}
    for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], ms, '+inf')) do living[name] = true end
  end
  return living[other]
end

-- The fields of a counter; `reserved` by all live workers. What is no counter, or no number (of another program, or of a
-- version that let too large ones in), is as if it were not there: one counter must not end the counting of all.
local function read(key)
  local flat = redis.pcall('HGETALL', key)
  if flat.err then
    redis.call('DEL', key)
    flat = {}
  end
  local c = {reserved = 0}
  for i = 1, #flat, 2 do
    local name, value = flat[i], flat[i + 1]
    if string.sub(name, 1, 2) ~= 'r:' then
      c[name] = (name == 'e' or name == 'g') and value or tonumber(value)
    elseif lives(string.sub(name, 3)) then
      c.reserved = c.reserved + (tonumber(value) or 0)
    else
      redis.call('HDEL', key, name)
    end
  end
  if not (c.b and c.h) then c.u = nil end
  return c
end

-- Whether this could be added: not to what is no whole number of 64 bits.
local function added(key, field, amount)
  local reply = redis.pcall('HINCRBY', key, field, amount)
  return type(reply) == 'number'
end

-- A new window, of which `used` is known. Reservations of the window before are no concern of it.
local function renew(key, begin, high, used, epoch, ttl)
  redis.call('DEL', key)
  redis.call('HSET', key, 'u', used, 'b', begin, 'g', begin, 'h', math.max(high, tonumber(begin)), 'e', epoch)
  redis.call('EXPIRE', key, ttl)
end

-- A caller of the window's last seconds, who comes after another's first call in the next one: counted there.
local function late(c, begin, seconds)
  return begin < c.b and tonumber(seconds) <= LATE
end

-- admit: of each counter: what to reserve, amount of the limit, begin ('' if it has no window), seconds to its end.
-- -> {0, window, spent, window, spent, …} · {1, place, used, reserved, place, used, reserved, …}: the limits reached
--    {2, epoch, place, …}: of these it is unknown what was used · {3}: the lease has run out
local function admit()
  if not holds() then return {3} end
  local epoch = redis.call('HGET', KEYS[2], 'n') or ''
  local counters, unknown = {}, {2, epoch}
  for i = 1, #KEYS - 3 do
    local key, at = KEYS[i + 3], 4 * i - 1
    local begin, c = ARGV[at + 2], read(KEYS[i + 3])
    if begin ~= '' then
      local number = tonumber(begin)
      if c.u and c.e == epoch and number > c.b and number > c.h then
        renew(key, begin, 0, 0, epoch, tonumber(ARGV[at + 3]) + KEPT)
        c = {u = 0, g = begin, reserved = 0}
      elseif not c.u or c.e ~= epoch or (number ~= c.b and not late(c, number, ARGV[at + 3]))
        or (c.q and ms >= c.q) then
        unknown[#unknown + 1] = i - 1
      end
    end
    counters[i] = c
  end
  if #unknown > 2 then return unknown end

  local reached = {1}
  for i, c in ipairs(counters) do
    local at = 4 * i - 1
    local wanted, amount, spent = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), (c.u or 0) + c.reserved
    local fits = wanted == 0 or spent + wanted <= amount or (c.reserved == 0 and spent < amount)
    if not fits then
      reached[#reached + 1] = i - 1
      reached[#reached + 1] = c.u or 0
      reached[#reached + 1] = c.reserved
    end
  end
  if #reached > 1 then return reached end

  local answer = {0}
  for i, c in ipairs(counters) do
    local at = 4 * i - 1
    local wanted = ARGV[at]
    if not added(KEYS[i + 3], 'r:' .. lease, wanted) then redis.call('HSET', KEYS[i + 3], 'r:' .. lease, wanted) end
    if ARGV[at + 2] == '' then redis.call('EXPIRE', KEYS[i + 3], KEPT) end
    answer[#answer + 1] = c.g or '0'
    answer[#answer + 1] = (c.u or 0) + c.reserved + tonumber(wanted)
  end
  return answer
end

-- settle: number of this batch; then for each counter: window, lease of the reservation, used, reserved, ms since.
local function settle()
  local number = tonumber(ARGV[3])
  if tonumber(redis.call('GET', KEYS[3]) or '0') >= number then return 0 end
  redis.call('SET', KEYS[3], number, 'EX', KEPT)
  for i = 1, #KEYS - 3 do
    local key, at = KEYS[i + 3], 5 * i - 1
    local name = 'r:' .. ARGV[at + 1]
    local c = redis.pcall('HMGET', key, 'u', 'g', 's', name)
    if not c.err and (c[2] or '0') == ARGV[at] then
      if c[4] then
        local left = (tonumber(c[4]) or 0) - tonumber(ARGV[at + 3])
        if left > 0 then redis.call('HSET', key, name, left) else redis.call('HDEL', key, name) end
      end
      -- What ended a second before the records were read is in them.
      if c[1] and ms - tonumber(ARGV[at + 4]) > tonumber(c[3] or '0') - 1000 then
        if not added(key, 'u', ARGV[at + 2]) then redis.call('HDEL', key, 'u') end  -- it is read from the records again
      end
    end
  end
  return 1
end

-- seed: of one counter: begin, used, latest window, 1 if the records could be read, epoch, ms since they were,
-- seconds to its end. The second worker to come changes nothing.
local function seed()
  local key, begin, used, high = KEYS[4], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
  local read_it, epoch, ttl = ARGV[6] == '1', ARGV[7], tonumber(ARGV[9]) + KEPT
  local c = read(key)
  if c.u and c.b == tonumber(begin) and c.e == epoch and not c.q then return 0 end
  if c.g and c.g ~= begin and (not c.u or tonumber(begin) > c.b) then
    renew(key, begin, math.max(high, c.h or 0), used, epoch, ttl)
  else
    redis.call('HSET', key, 'u', math.max(used, c.u or 0), 'b', begin, 'g', c.g or begin, 'e', epoch,
      'h', math.max(high, c.h or 0, tonumber(begin)))
    redis.call('EXPIRE', key, ttl)
  end
  if read_it then
    redis.call('HSET', key, 's', ms - tonumber(ARGV[8]))
    redis.call('HDEL', key, 'q')
  else
    redis.call('HSET', key, 'q', ms + 5000)
  end
  return 1
end

-- enter: length of the lease in ms, the worker's last lease, run id of the server, 1 if the worker has forgotten
-- settlements; then for each counter: window, what the worker holds reserved. -> how many workers there are
local function enter()
  if redis.call('HGET', KEYS[2], 'run') ~= ARGV[5] or ARGV[6] == '1' then
    redis.call('HSET', KEYS[2], 'run', ARGV[5])
    doubt()
  end
  local workers = keep_lease(tonumber(ARGV[3])) - redis.call('ZREM', KEYS[1], ARGV[4])
  for i = 1, #KEYS - 3 do
    local key, at = KEYS[i + 3], 5 + 2 * i
    local kind = redis.call('TYPE', key).ok
    if kind ~= 'hash' and kind ~= 'none' then redis.call('DEL', key) end
    local window = redis.call('HGET', key, 'g')
    if not window or window == ARGV[at] then
      redis.call('HSET', key, 'g', ARGV[at], 'r:' .. lease, ARGV[at + 1])
      if redis.call('TTL', key) < 0 then redis.call('EXPIRE', key, KEPT) end
    end
  end
  return workers
end

-- beat: length of the lease in ms. -> how many workers there are, 0 if the lease had run out
local function beat()
  if not holds() then return 0 end
  return keep_lease(tonumber(ARGV[3]))
end

if verb == 'admit' then return admit() end
if verb == 'settle' then return settle() end
if verb == 'seed' then return seed() end
if verb == 'enter' then return enter() end
if verb == 'beat' then return beat() end
return redis.call('ZREM', KEYS[1], lease)
