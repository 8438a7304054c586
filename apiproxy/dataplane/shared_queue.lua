-- One queue for all workers: who may send how many calls to which engine. See shared_queue.py.
--
-- KEYS[1] leases    sorted set: worker -> ms of this server's clock until which it holds. What a worker has counts only
--                   while its lease does, so the credits of a killed one are free when it runs out.
-- KEYS[2] settling  exists while workers come back after this server has lost everything
-- KEYS[3] waits     of a model, hash: worker -> JSON {at, rows of [class, calls, flows, aged, counter, since, flow]}
-- KEYS[4] served    of a model, hash: flow -> counter; class -> the least counter of those that wait; it only rises
-- KEYS[5…] credits  of its replicas, each a hash: worker -> "held running"; ':room', ':at' of the report it is from,
--                   ':set' ms of this server's clock at which it was set; ':settle' until which calls are entered that
--                   began before there was one
-- ARGV[1] what to do, ARGV[2] the worker, ARGV[3] ms of a lease, ARGV[4] prefix of channels, ARGV[5] JSON:
--   model      '' if the message is of no model
--   replicas   rows of [id, room (0: as it is), report ('' if stated), 1 if it may be used now, credits given back,
--              calls running, credits claimed]
--   waits      as above, with ms for `since`
--   flows      rows of [flow, class, what it was served, its counter there, 1 if it begins to wait]
--   loud       whether the others hear of calls that are left without a credit in any case
--   again      whether the worker held a lease before

local clock = redis.call('TIME')
local ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
local verb, worker, lease, channel = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local KEPT = 60  -- s
local RECENT = 3000  -- ms; who waits says so every second
local OLD = 20000  -- ms
local SETTLE = 1500  -- ms in which every worker that lives has come back
local LEARNED = 2500  -- ms in which every worker has read that an engine reports, and has entered the calls it has there

local function keep_lease()
  redis.call('ZADD', KEYS[1], ms + lease, worker)
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. ms)
  redis.call('ZREMRANGEBYSCORE', KEYS[1], ms + lease * 10, '+inf')  -- of a clock that was set back since
  redis.call('PEXPIRE', KEYS[1], lease * 10)
end

if verb == 'leave' then return redis.call('ZREM', KEYS[1], worker) end

local said = cjson.decode(ARGV[5])
if verb == 'enter' then
  if said.again and redis.call('EXISTS', KEYS[1]) == 0 then redis.call('SET', KEYS[2], 1, 'PX', SETTLE) end
else
  local till = redis.call('ZSCORE', KEYS[1], worker)
  if not till or tonumber(till) < ms then return 0 end
end
keep_lease()
local living, workers = {}, 0
for _, name in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  living[name] = true
  workers = workers + 1
end
local settling = redis.call('EXISTS', KEYS[2]) == 1

-- What is read here was written by workers of another version too, at most: what cannot be read is as if it were away.
local function hash(key)
  local flat = redis.pcall('HGETALL', key)
  if flat.err then
    redis.call('DEL', key)
    flat = {}
  end
  local found = {}
  for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
  return found
end

-- A number that can be counted with; nil of what is none, infinite, or too large to be exact.
local function number(text)
  local value = tonumber(text)
  return value and value > -1e15 and value < 1e15 and value or nil
end

-- What waits in a worker, as this version writes it; nil of anything else.
local function read_entry(text)
  local ok, entry = pcall(cjson.decode, text)
  if not ok or type(entry) ~= 'table' or type(entry.at) ~= 'number' or type(entry.waits) ~= 'table' then return nil end
  for _, row in ipairs(entry.waits) do
    if type(row) ~= 'table' or type(row[7]) ~= 'string' then return nil end
    for field = 1, 6 do
      if type(row[field]) ~= 'number' then return nil end
    end
  end
  return entry
end

-- A worker that was killed hears nothing from that moment. What it has is its own until its lease ends, as its connection
-- alone may be gone; but it gets no more by what it said before.
local function hears(name)
  local reply = redis.pcall('PUBSUB', 'NUMSUB', channel .. name)
  return reply.err ~= nil or reply[2] > 0
end

-- --- credits

local replicas = {}
for i, row in ipairs(said.replicas) do
  local key, stored = KEYS[4 + i], hash(KEYS[4 + i])
  local c = {key = key, id = row[1], open = row[4] == 1, held = {}, running = {}, changed = {}, busy = 0}
  local total = 0
  for name, value in pairs(stored) do
    local held, running = string.match(value, '^(%d+) (%d+)$')
    held, running = number(held), number(running)
    if held and running and living[name] then
      c.held[name], c.running[name] = held, running
      total = total + c.held[name]
      c.busy = c.busy + c.running[name]
    elseif string.sub(name, 1, 1) ~= ':' then
      redis.call('HDEL', key, name)
    end
  end
  local room, report = row[2], row[3]
  -- A room that is learned: of every report the estimate that comes first holds for all. One that seems to be older is
  -- heeded when none has come for a while: a clock was set back.
  local old = report ~= '' and (stored[':at'] or '') >= report and ms - (number(stored[':set']) or 0) < OLD
  if room == 0 or old then
    room = number(stored[':room']) or room
  elseif stored[':room'] ~= tostring(room) or stored[':at'] ~= report then
    if report ~= '' and not stored[':room'] then
      redis.call('HSET', key, ':settle', ms + LEARNED)
      stored[':settle'] = ms + LEARNED
    end
    redis.call('HSET', key, ':room', room, ':at', report, ':set', ms)
  end
  c.settling = settling or ms < (number(stored[':settle']) or 0)
  c.room = room
  local before = c.held[worker] or 0
  c.before = before
  c.held[worker] = verb == 'enter' and row[7] or math.max(before - row[5], row[7])
  if c.held[worker] ~= before or c.running[worker] ~= row[6] then c.changed[worker] = true end
  c.busy = c.busy - (c.running[worker] or 0) + row[6]
  c.running[worker] = row[6]
  c.free = room - total + before - c.held[worker]
  replicas[i] = c
end

-- --- counters

local counters, fields, values, writes = {}, {}, {}, {}
local entries, mine = {}, nil
if said.model ~= '' then
  for name, text in pairs(hash(KEYS[3])) do
    local entry = read_entry(text)
    if entry and living[name] and entry.at >= ms - RECENT and (name == worker or hears(name)) then
      entries[name] = entry
    elseif name ~= worker then
      redis.call('HDEL', KEYS[3], name)
    end
  end
  mine = entries[worker]
  entries[worker] = nil
  if #said.waits > 0 then
    for _, row in ipairs(said.waits) do row[6] = ms - row[6] end
    entries[worker] = {at = ms, waits = said.waits}
  end

  for i, row in ipairs(said.flows) do fields[i] = row[1] end
  for class = 0, 2 do fields[#fields + 1] = tostring(class) end
  local stored = redis.pcall('HMGET', KEYS[4], unpack(fields))
  if stored.err then
    redis.call('DEL', KEYS[4])
    stored = {}
  end
  local floors = {}
  for class = 0, 2 do
    local least
    for _, entry in pairs(entries) do
      for _, row in ipairs(entry.waits) do
        if row[1] == class and (not least or row[5] < least) then least = row[5] end
      end
    end
    local before = number(stored[#said.flows + class + 1]) or 0
    floors[class] = math.max(before, least or 0)
    if floors[class] ~= before then
      writes[#writes + 1] = tostring(class)
      writes[#writes + 1] = string.format('%.3f', floors[class])
    end
  end
  for i, row in ipairs(said.flows) do
    local known = number(stored[i])
    local value = known and known + row[3] or row[4]
    if row[5] == 1 then value = math.max(known and value or 0, floors[row[2]]) end
    counters[i] = value
    values[row[1]] = value
    if value ~= known then
      writes[#writes + 1] = row[1]
      writes[#writes + 1] = string.format('%.3f', value)
    end
  end
  if not next(entries) then
    redis.call('DEL', KEYS[4])  -- what was served before the first had to wait cost no caller anything
  elseif #writes > 0 then
    redis.call('HSET', KEYS[4], unpack(writes))
  end
  if next(entries) then redis.call('EXPIRE', KEYS[4], KEPT) end

  -- --- who goes next

  local hungry = {}
  for name, entry in pairs(entries) do
    for _, row in ipairs(entry.waits) do
      hungry[#hungry + 1] = {name = name, row = row, class = row[1], aged = row[4] == 1,
        counter = math.max(values[row[7]] or row[5], floors[row[1]])}
    end
  end
  local function earlier(one, other)
    if one.class ~= other.class then return one.class < other.class end
    if one.aged ~= other.aged then return one.aged end
    if not one.aged and one.counter ~= other.counter then return one.counter < other.counter end
    return one.row[6] < other.row[6]
  end
  -- A batch call leaves one free for the next interactive one, unless it is the only one. A worker takes none of a replica
  -- that it does not use now. While others come back each only gets what it has given back itself.
  local function best_replica(name, class)
    local found
    for _, c in ipairs(replicas) do
      local fits = c.free > 0 and (class == 0 or c.free > 1 or c.room == 1)
      if name == worker then fits = fits and c.open end
      if c.settling then fits = fits and name == worker and (c.held[name] or 0) < c.before end
      if fits and (not found or c.free > found.free) then found = c end
    end
    return found
  end
  local function grant(c, name)
    c.held[name] = (c.held[name] or 0) + 1
    c.free = c.free - 1
    c.changed[name] = true
  end
  local granted, interactive = {}, false
  while true do
    local first
    for _, one in ipairs(hungry) do
      if one.row[2] > 0 and not one.full and (not first or earlier(one, first)) then first = one end
    end
    if not first then break end
    local c = best_replica(first.name, first.class)
    if c then
      grant(c, first.name)
      granted[first.name] = true
      interactive = interactive or (first.name == worker and first.class == 0)
      -- Its next call is unknown until it says more: of those that were served alike it is the last.
      first.row[2], first.row[6] = first.row[2] - 1, ms
    else
      first.full = true
    end
  end
  local left = false
  for _, one in ipairs(hungry) do left = left or one.row[2] > 0 end
  -- While no call is left a worker whose people call takes its share, and when that is taken half of what is free.
  if interactive and not left then
    for _, c in ipairs(replicas) do
      local held = c.held[worker] or 0
      local more = math.min(c.free, math.max(math.ceil(c.room / workers) - held, math.floor(c.free / 2)))
      if c.open and not c.settling and more > 0 then
        c.held[worker], c.free, c.changed[worker] = held + more, c.free - more, true
      end
    end
  end

  for name, entry in pairs(entries) do
    if name == worker or granted[name] then redis.call('HSET', KEYS[3], name, cjson.encode(entry)) end
  end
  if not entries[worker] and mine then redis.call('HDEL', KEYS[3], worker) end
  if next(entries) then redis.call('EXPIRE', KEYS[3], KEPT) end
end

for _, c in ipairs(replicas) do
  for name in pairs(c.changed) do
    redis.call('HSET', c.key, name, string.format('%d %d', c.held[name], c.running[name] or 0))
  end
  redis.call('EXPIRE', c.key, KEPT)
end

-- --- answers

local waits = {}
for name, entry in pairs(entries) do
  local rows = {}
  for _, row in ipairs(entry.waits) do
    if row[2] > 0 then rows[#rows + 1] = {row[1], row[2], row[3]} end
  end
  if #rows > 0 then waits[name] = rows end
end

local function shares(name)
  local rows = {}
  for i, c in ipairs(replicas) do rows[i] = {c.id, c.held[name] or 0, c.free, c.room, c.busy - (c.running[name] or 0)} end
  return rows
end

-- Those that got a credit by this worker's message, and, if it is left with calls, all others: theirs may be idle.
local new = waits[worker] and (said.loud or not mine)
if waits[worker] and not new then
  local before = {}
  for _, row in ipairs(mine.waits) do before[row[1]] = row[2] > 0 end
  for _, row in ipairs(waits[worker]) do new = new or not before[row[1]] end
end
for name in pairs(living) do
  local gained = false
  for _, c in ipairs(replicas) do gained = gained or c.changed[name] end
  if name ~= worker and (gained or new) then
    redis.call('PUBLISH', channel .. name, cjson.encode({model = said.model, waits = waits, replicas = shares(name)}))
  end
end
return cjson.encode({workers = workers, replicas = shares(worker), counters = counters, waits = waits})
