-- The one script of RedisLimiter: everything that a process says and learns, in one step of Redis's.
--
-- Keys of a group, all under {js:NAME}:
--   group    hash    born, epoch (which life of the group this is), fence, ticket, lease (the longest, ms), until, grace,
--                    hold (no grants before: some have opened connections without a slot, and get theirs first)
--   leases   zset    token -> when it ends (ms of TIME). A token is PROCESS:NUMBER
--   held     zset    process -> how many leases it has; the fraction tells when it got its last one
--   waiters  zset    process -> how many leases it has * 2^36 + its ticket: who is first goes first
--   members  zset    process -> until when it counts as alive: one lease after its last call
--   limits   zset    process -> the limit that it was given; the smallest counts
--   asked    zset    process -> since when it is to give up the next that comes back
--   told     set     processes that know that others wait, and give up what is idle
--   p:ID     hash    seq, lease, label; ask, ticket, token (granted for that ask, not known to have arrived); adopted
--                    (for each that had no slot and got one, not known to have arrived: "ASKED TOKEN ")
--   in:ID    list    the inbox: "g ASK TOKEN" (a grant), "u DUTY DELAY" (others wait; see the end), "w 0 DELAY" (call
--                    again then)
--
-- ARGV: prefix, op (sync, leave, forget), process, seq, lease (ms), limit, turn (ms), ask, want (0 no, 1 wait, 2 now or
-- never), epoch it knows, whole (1: its connection to Redis has not broken since), highest fence it knows, label,
-- number of tokens to renew, those, those given back. PROCESS:uNUMBER asks for a slot for what is open without one.
local prefix, op, me = ARGV[1], ARGV[2], ARGV[3]
local seq, lease, limit, turn = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local ask, want, known, whole = tonumber(ARGV[8]), tonumber(ARGV[9]), ARGV[10], ARGV[11] == '1'
local highest, label, renewals = tonumber(ARGV[12]), ARGV[13], tonumber(ARGV[14])
local group, leases, held, waiters = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local members, limits, asked, told = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local record, inbox = KEYS[9], KEYS[10]

local call = redis.call
local CHUNK = 200
local PLACE = 2 ^ 36 -- of the number of leases in a waiter's score; below it the ticket
local AGE = 2 ^ -42 -- ms since 1970 to less than 1
local GRACE = 1000 -- ms without a grant for a group that has just begun
local LEAVING = 1000 -- ms that a process may take to end after it has left
local DAYS = 7 * 86400000

local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function whole_number(value) return string.format('%.0f', value) end

-- How many a process holds -----------------------------------------------------------------------------

local function count_of(id)
  return math.floor(tonumber(call('ZSCORE', held, id) or 0))
end

local function rescore(id, by) -- a waiter's place follows from what it holds
  if call('ZSCORE', waiters, id) then call('ZINCRBY', waiters, by * PLACE, id) end
end

local function more(id)
  call('ZADD', held, count_of(id) + 2 - now * AGE, id)
  rescore(id, 1)
end

local function fewer(id)
  local count = count_of(id)
  if count == 0 then return end
  if count == 1 then call('ZREM', held, id) else call('ZINCRBY', held, -1, id) end
  rescore(id, -1)
end

local function holder_of(token) return string.match(token, '^(.-):') end

local function let_go(token)
  if call('ZREM', leases, token) == 1 then fewer(holder_of(token)) end
end

local function forget(id)
  call('DEL', prefix .. 'p:' .. id, prefix .. 'in:' .. id)
  call('ZREM', members, id)
  call('ZREM', limits, id)
  call('ZREM', waiters, id)
  call('ZREM', asked, id)
  call('SREM', told, id)
end

-- The group as it is now -------------------------------------------------------------------------------

local saved = call('HMGET', group, 'born', 'epoch', 'fence', 'lease', 'until', 'grace', 'hold')
local born, epoch, grace = tonumber(saved[1]), saved[2], tonumber(saved[6] or GRACE)
local fence = math.max(tonumber(saved[3] or 0), highest)
local longest = math.max(tonumber(saved[4] or 0), op == 'forget' and saved[4] and 0 or lease) -- who forgets has none
local latest, hold = tonumber(saved[5] or 0), tonumber(saved[7] or 0)

if not born or (latest > now and call('EXISTS', leases) == 0) then
  -- It begins: for the first time, or Redis has lost it, or thrown the leases out. Those who hold say so first.
  born, epoch, grace = now, whole_number(clock[1] * 1000000 + clock[2]), GRACE
  fence = math.max(fence, clock[1] * 1000000 + clock[2])
end
born, hold = math.min(born, now), math.min(hold, now + longest + GRACE) -- the clock went back
if known ~= '' and known ~= epoch and whole then
  -- Lost, yet the connections stand: the others learn of it only when they renew.
  grace = math.max(grace, math.floor(longest / 3) + GRACE)
end

for _, key in ipairs({leases, members}) do -- the clock went back: what ends later than it may, ends in one lease
  while true do
    local last = call('ZRANGE', key, -1, -1, 'WITHSCORES')
    if #last == 0 or tonumber(last[2]) <= now + longest then break end
    for _, each in ipairs(call('ZREVRANGE', key, 0, CHUNK - 1)) do
      if tonumber(call('ZSCORE', key, each)) > now + longest then call('ZADD', key, now + longest, each) end
    end
  end
end

local have_ended = false
while true do
  local ended = call('ZRANGEBYSCORE', leases, '-inf', now, 'LIMIT', 0, CHUNK)
  if #ended == 0 then break end
  have_ended = true
  for _, token in ipairs(ended) do fewer(holder_of(token)) end
  call('ZREMRANGEBYRANK', leases, 0, #ended - 1)
end

while true do
  local silent = call('ZRANGEBYSCORE', members, '-inf', now, 'LIMIT', 0, CHUNK)
  if #silent == 0 then break end
  for _, id in ipairs(silent) do forget(id) end
end
if have_ended and call('EXISTS', members) == 0 then -- Redis was away: what was opened without a slot comes first
  hold = math.max(hold, now + GRACE)
end

-- The caller -------------------------------------------------------------------------------------------

local granted, lost, adopted = '', {}, {}
local position = 14 + renewals

if op == 'forget' then
  local from, freed = 0, 0
  while true do
    local some = call('ZRANGE', leases, from, from + CHUNK - 1)
    if #some == 0 then break end
    local kept = 0
    for _, token in ipairs(some) do
      if holder_of(token) == me then
        let_go(token)
        freed = freed + 1
      else
        kept = kept + 1
      end
    end
    from = from + kept
  end
  adopted = {'freed', whole_number(freed)}
  forget(me)
else
  local mine = call('HMGET', record, 'seq', 'ask', 'token', 'ticket', 'adopted')
  if seq < tonumber(mine[1] or 0) then return {'late'} end -- overtaken by a later call of the same process
  local last_ask, token = tonumber(mine[2] or 0), mine[3]

  for index = position + 1, #ARGV do
    let_go(ARGV[index])
    call('ZREM', asked, me)
    if ARGV[index] == token then token = false end
  end

  if op == 'leave' then
    if token then let_go(token) end
    forget(me)
    for index = 15, position do -- connections that end with the process, which is about to
      if call('ZSCORE', leases, ARGV[index]) then call('ZADD', leases, now + LEAVING, ARGV[index]) end
    end
  else
    call('ZADD', members, now + lease, me)
    call('ZADD', limits, limit, me)
    call('HSET', record, 'seq', ARGV[4], 'lease', ARGV[5], 'label', label)
    call('PEXPIRE', record, 3 * lease)
    limit = tonumber(call('ZRANGE', limits, 0, 0, 'WITHSCORES')[2])

    -- An answer that gave slots to what had none may have been lost: the same again. Of those that are closed
    -- since, it knows no slot that it could give back.
    local before, is_told = {}, {}
    for asker, its in string.gmatch(mine[5] or '', '(%S+) (%S+) ') do before[asker] = its end
    for index = 15, position do is_told[ARGV[index]] = true end
    if renewals > 0 then
      for asker, its in pairs(before) do
        if not is_told[asker] and not is_told[its] then let_go(its) end
      end
    end

    local missing, present, kept = {}, 0, {}
    local on_its_way = token and call('ZSCORE', leases, token) and 1 or 0 -- a grant that it has not told of
    for index = 15, position do
      local again = before[ARGV[index]]
      if again and call('ZSCORE', leases, again) then
        call('ZADD', leases, now + lease, again)
        present = present + 1
        adopted[#adopted + 1] = ARGV[index]
        adopted[#adopted + 1] = again
        kept[#kept + 1] = ARGV[index] .. ' ' .. again .. ' '
      elseif call('ZSCORE', leases, ARGV[index]) then
        call('ZADD', leases, now + lease, ARGV[index])
        present = present + 1
        if ARGV[index] == token then on_its_way = 0 end
      else
        missing[#missing + 1] = ARGV[index]
      end
    end
    if present > 0 and not call('ZSCORE', held, me) then -- Redis has thrown that out
      call('ZADD', held, present + on_its_way + 1 - now * AGE, me)
    end
    -- What is missing is taken again if there is room. What never had a slot comes after those who had one.
    local room = limit - call('ZCARD', leases)
    for _, each in ipairs(missing) do
      local is_new = string.sub(each, #me + 2, #me + 2) == 'u'
      local verdict = each
      if is_new and now - born < grace then
        verdict = '' -- ask again later
        hold = math.max(hold, born + grace + GRACE)
      elseif room <= 0 then
        verdict = '-'
        lost[#lost + 1] = each
      else
        room = room - 1
        if is_new then
          if not whole then hold = math.max(hold, now + GRACE) end -- others may come back just now
          fence = fence + 1
          verdict = me .. ':' .. whole_number(fence)
          kept[#kept + 1] = each .. ' ' .. verdict .. ' '
        end
        call('ZADD', leases, now + lease, verdict)
        more(me)
      end
      if is_new then
        adopted[#adopted + 1] = each
        adopted[#adopted + 1] = verdict
      end
    end

    if #kept > 0 then
      call('HSET', record, 'adopted', table.concat(kept))
    elseif renewals > 0 then
      call('HDEL', record, 'adopted')
    end

    if ask > 0 and ask == last_ask and token and call('ZSCORE', leases, token) then
      call('ZADD', leases, now + lease, token) -- the answer was lost: the same again
      granted = token
      call('ZREM', waiters, me)
    elseif ask > 0 and want > 0 then
      local ticket = mine[4]
      if ask ~= last_ask then ticket = call('HINCRBY', group, 'ticket', 1) end
      call('HSET', record, 'ask', ask, 'ticket', ticket)
      call('HDEL', record, 'token')
      call('ZADD', waiters, count_of(me) * PLACE + ticket, me)
    else
      call('HDEL', record, 'token')
      call('ZREM', waiters, me)
    end
  end
end

-- Grants: room goes to who holds fewest, then by ticket -----------------------------------------------

limit = tonumber(call('ZRANGE', limits, 0, 0, 'WITHSCORES')[2] or limit)
local room = limit - call('ZCARD', leases)
local is_granting = now - born >= grace and now >= hold
while room > 0 and is_granting do
  local first = call('ZRANGE', waiters, 0, 0)[1]
  if not first then break end
  local ends = tonumber(call('ZSCORE', members, first) or 0)
  local its = call('HMGET', prefix .. 'p:' .. first, 'lease', 'ask')
  call('ZREM', waiters, first)
  -- One that has said nothing for half a lease may be dead: its next call brings it back, with its ticket.
  if its[1] and ends - now >= tonumber(its[1]) / 2 then
    fence = fence + 1
    local token = first .. ':' .. whole_number(fence)
    call('ZADD', leases, ends, token) -- it reckons from its last call, too
    more(first)
    call('HSET', prefix .. 'p:' .. first, 'token', token)
    if first == me then
      granted = token
    else
      call('RPUSH', prefix .. 'in:' .. first, 'g ' .. its[2] .. ' ' .. token)
      call('PEXPIRE', prefix .. 'in:' .. first, 3 * longest)
    end
    room = room - 1
  end
end
if want == 2 then call('ZREM', waiters, me) end
if op == 'leave' and renewals > 0 then -- who waits looks again when the last ones have ended
  for _, id in ipairs(call('ZRANGE', waiters, 0, math.min(renewals, CHUNK) - 1)) do
    call('RPUSH', prefix .. 'in:' .. id, 'w 0 ' .. LEAVING + 1)
    call('PEXPIRE', prefix .. 'in:' .. id, 3 * longest)
  end
end

-- Who is to give up something for those who wait --------------------------------------------------------

local waiting, count = call('ZCARD', waiters), call('ZCARD', leases)
local excess = math.max(0, -room) -- a smaller limit has come
local IDLE, NEXT = 1, 2

local function tell(id, duty, delay)
  call('SADD', told, id)
  if id == me then return end -- its answer says it
  call('RPUSH', prefix .. 'in:' .. id, 'u ' .. duty .. ' ' .. whole_number(delay))
  call('PEXPIRE', prefix .. 'in:' .. id, 3 * longest)
end

local function is_pressed() return excess > 0 or (waiting > 0 and room <= 0 and is_granting) end

if not is_pressed() then
  call('DEL', asked, told)
else
  local poorest = call('ZRANGE', waiters, 0, 0, 'WITHSCORES')[2]
  if poorest then -- a poorer one has come than the one for whom these are to give up something later
    local at_once = math.floor(tonumber(poorest) / PLACE) + 2
    for _, id in ipairs(call('ZRANGEBYSCORE', asked, '(' .. whole_number(now), '+inf', 'LIMIT', 0, 8)) do
      if count_of(id) >= at_once then
        call('ZADD', asked, now, id)
        tell(id, NEXT, 0)
      end
    end
  end
  -- The n-th in need is served by the n-th of those who hold most; one that keeps us waiting does not count.
  local under_way = call('ZCOUNT', asked, now - turn, '+inf')
  local needy = {}
  for _ = under_way + 1, math.min(excess, under_way + 8) do needy[#needy + 1] = {'', -2} end
  local from = math.max(0, under_way - excess)
  local some = call('ZRANGE', waiters, from, from + 7, 'WITHSCORES')
  for at = 1, #some, 2 do needy[#needy + 1] = {some[at], math.floor(tonumber(some[at + 1]) / PLACE)} end
  local rich = #needy > 0 and call('ZREVRANGE', held, 0, call('ZCARD', asked) + 8, 'WITHSCORES') or {}
  local index = 1
  for at = 1, #rich, 2 do
    local id, has, who = rich[at], math.floor(tonumber(rich[at + 1])), needy[index]
    if not who or has <= who[2] then break end
    if id ~= who[1] and not call('ZSCORE', asked, id) then
      local got = (has + 1 - tonumber(rich[at + 1])) / AGE
      local due = has >= who[2] + 2 and now or math.max(now, math.floor(got + turn))
      call('ZADD', asked, due, id)
      tell(id, NEXT, due - now)
      index = index + 1
    end
  end
  -- What is idle, at once; those who wait themselves have nothing idle.
  local with_none = call('ZCOUNT', waiters, '-inf', '(' .. whole_number(PLACE))
  if want == 1 and waiting - with_none < call('ZCARD', held) then
    for _, id in ipairs(call('ZREVRANGE', held, 0, CHUNK - 1)) do
      if not call('ZSCORE', waiters, id) and call('SISMEMBER', told, id) == 0 then tell(id, IDLE, 0) end
    end
  end
end

local duty, delay = 0, 0
if is_pressed() and count_of(me) > 0 then
  local since = call('ZSCORE', asked, me)
  local first = call('ZRANGE', waiters, 0, 0, 'WITHSCORES')
  if since and (excess > 0 or (first[1] ~= me and count_of(me) > math.floor(tonumber(first[2]) / PLACE))) then
    duty, delay = NEXT, math.max(0, tonumber(since) - now)
  elseif not call('ZSCORE', waiters, me) then
    duty = IDLE
  end
end
if duty ~= NEXT then call('ZREM', asked, me) end
if duty == 0 then call('SREM', told, me) end

-- What is kept ------------------------------------------------------------------------------------------

local last = call('ZRANGE', leases, -1, -1, 'WITHSCORES')
call('HSET', group, 'born', born, 'epoch', epoch, 'fence', whole_number(fence), 'lease', longest,
  'until', last[2] or 0, 'grace', grace, 'hold', hold)
call('PEXPIRE', group, DAYS)
for _, key in ipairs({leases, held, waiters, members, limits, asked, told}) do
  call('PEXPIRE', key, 3 * longest)
end
return {
  'ok', epoch, limit, count, count_of(me), waiting, granted, duty, delay,
  math.max(0, now - born < grace and born + grace - now or hold - now), lost, adopted,
}
